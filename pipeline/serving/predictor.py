"""Predict for photos with a registered model: a row per detection, image or refined mask.

    predictor = load_predictor(folder / "artifacts")
    rows = predictor.predict(["photo.jpg", encoded_bytes, array], params={"score_threshold": 0.5})

Photos are predicted one by one, so a prediction does not depend on the rest of the request, and a
photo that cannot be read costs only itself.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped]
import torch
from torch import nn

from bsm.build import SkipRandomInit, build_model
from bsm.checkpoints.weights import load_weights
from bsm.configs.models import without_weights
from bsm.refine.refiner import Refiner
from pipeline import checksums
from pipeline.data import collate_semantic
from pipeline.data.collate import collate_images
from pipeline.data.manifest import Category
from pipeline.data.photo import Pixels
from pipeline.data.problems import ProblemCounts, format_problems
from pipeline.errors import DatasetError, RegistryError
from pipeline.evaluation import views
from pipeline.evaluation.infer import Detection, detect
from pipeline.evaluation.label_maps import label_batch
from pipeline.evaluation.label_planes import describe_labels
from pipeline.evaluation.mask_refinement import MAX_CHANGE
from pipeline.evaluation.objects import Floats, Objects
from pipeline.recipe import ModelTask, Recipe, from_json
from pipeline.serving.artifacts import (
    CATEGORIES_FILE,
    RECIPE_FILE,
    SCORE_THRESHOLD,
    WEIGHTS_FILE,
    categories_from_json,
)
from pipeline.serving.memory import describe_memory, list_memory_errors
from pipeline.serving.photos import open_photo
from pipeline.serving.refinements import (
    REFINEMENT_COLUMNS,
    Request,
    refine_photo,
    to_requests,
)

DEVICE_VARIABLE = "BSM_DEVICE"
"""Environment variable that names the device; by default a GPU if there is one."""

DETECTION_COLUMNS = (
    "image_index",
    "category_name",
    "category_index",
    "score",
    "box_xyxy",
    "rle",
    "error",
)
"""Columns of an instance model. box_xyxy holds four floats in pixels of the photo, rle COCO's dict
of size and counts. error is "", or says why a photo was not predicted; its row has nothing else."""

LABEL_COLUMNS = (
    "image_index",
    "label_map",
    "category_ids",
    "category_names",
    "pixel_shares",
    "error",
)
"""Columns of a semantic model. label_map is an 8-bit PNG of the photo's size whose values are
category ids, as in the label files of the dataset. The lists hold the categories in the map, by
descending pixel share, and their shares. error is as for instances."""

_COLUMNS: dict[str, tuple[str, ...]] = {
    "instance": DETECTION_COLUMNS,
    "semantic": LABEL_COLUMNS,
    "refine": REFINEMENT_COLUMNS,
}

_PARAMS = {"score_threshold": SCORE_THRESHOLD, "max_change": MAX_CHANGE}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictor:
    """A model in evaluation mode, with everything that it needs to predict."""

    model: nn.Module
    recipe: Recipe
    categories: tuple[Category, ...]
    device: torch.device

    @property
    def task(self) -> ModelTask:
        """Task of the model: instance, semantic or refine."""
        return self.recipe.model.task

    def predict(self, images: object, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Predict for photos.

        Args:
            images: list of paths, encoded files as bytes (base64 text over REST) and uint8 arrays
                (H, W, 3) in RGB, in any mixture; or a DataFrame with such a column `image`. EXIF
                orientation is not applied. For a refiner see `refinements.to_requests`.
            params: score_threshold of an instance model, 0.5 by default. The model itself drops
                detections below the recipe's box_head.score_threshold. max_change of a refiner.

        Returns:
            Rows with the columns DETECTION_COLUMNS, LABEL_COLUMNS or REFINEMENT_COLUMNS; one with
            an error for each photo that cannot be read or does not fit into memory.

        Raises:
            DatasetError: no image can be predicted; the message names each of them. Or
                score_threshold is not in [0, 1].
        """
        columns = _COLUMNS[self.task]
        requests = (
            to_requests(images)
            if isinstance(self.model, Refiner)
            else [Request(photo, None) for photo in _to_list(images)]
        )
        values = {name: _check_param(name, params or {}) for name in _PARAMS}
        rows: list[tuple[Any, ...]] = []
        errors: list[str] = []
        notices = ProblemCounts()
        for index, (photo, masks) in enumerate(requests):
            name = f"image {index}"
            try:
                pixels, changes = open_photo(photo, name=name)
                found = self._predict_one(pixels, masks, name=name, values=values)
                rows += [(index, *row, "") for row in found]
            except DatasetError as error:
                errors.append(str(error))
            except list_memory_errors() as error:
                errors.append(f"{name}: {describe_memory(error)}")
            else:
                for kind, reason in changes:
                    notices.add(kind, f"{name}: {reason}")
                continue
            rows.append((index, *(None for _ in columns[1:-1]), errors[-1]))
        _report(errors, notices, total=len(requests))
        # Beside None, pandas would turn integers into floats.
        return pd.DataFrame(rows, columns=list(columns), dtype=object if errors else None)

    def predict_photo(self, pixels: Pixels, *, score_threshold: float = 0) -> list[dict[str, Any]]:
        """Predict for one decoded photo.

        Returns:
            Rows by column, as `predict` does, without image_index and error.

        Raises:
            DatasetError: score_threshold is not in [0, 1].
        """
        _check_param("score_threshold", {"score_threshold": score_threshold})
        return self._name_columns(self._predict_photo(pixels, score_threshold))

    def predict_photos(self, photos: Sequence[Pixels]) -> list[list[dict[str, Any]]]:
        """Predict all instances or the label maps of several decoded photos.

        For instances, photos of equal size share a forward pass; others would be padded to the
        largest, and a prediction would depend on the photos beside it. Label maps are predicted
        one by one, since the logits of one may take much of the memory.

        Returns:
            For each photo its rows, as `predict_photo` does, best first.
        """
        if self.task == "semantic":
            return [self._name_columns([self._predict_label_map(pixels)]) for pixels in photos]
        by_size: dict[tuple[int, ...], list[int]] = {}
        for index, pixels in enumerate(photos):
            by_size.setdefault(pixels.shape, []).append(index)
        found: dict[int, list[dict[str, Any]]] = {}
        for indices in by_size.values():
            rows = self._detect([photos[index] for index in indices])
            found |= zip(indices, map(self._name_columns, rows), strict=True)
        return [found[index] for index in range(len(photos))]

    def refine_masks(
        self, pixels: Pixels, masks: Sequence[object], *, max_change: float = MAX_CHANGE
    ) -> list[dict[str, Any]]:
        """Refine masks of a decoded photo with a refiner.

        Args:
            pixels: (H, W, 3) RGB.
            masks: as `refinements.to_requests` takes them.
            max_change: masks that would change more are kept.

        Returns:
            Rows by column, as `predict` does, without image_index and error.

        Raises:
            DatasetError: masks cannot be read, max_change is not in [0, 1], or the model is no
                refiner.
        """
        if not isinstance(self.model, Refiner):
            raise DatasetError(f"a model of task {self.task} cannot refine masks")
        values = {"max_change": _check_param("max_change", {"max_change": max_change})}
        return self._name_columns(self._predict_one(pixels, masks, name="photo", values=values))

    def find_objects(self, pixels: Pixels, *, scale: float = 1.0) -> Objects:
        """Find the objects of a photo; see `views.find_objects`."""
        return views.find_objects(self.model, pixels, self.recipe.data, scale=scale)

    def find_probs(self, pixels: Pixels, *, scale: float = 1.0) -> Floats:
        """Compute the class probabilities of a photo; see `views.find_probs`."""
        window_px = self.recipe.evaluation.window_px
        return views.find_probs(
            self.model, pixels, self.recipe.data, scale=scale, window_px=window_px
        )

    def _predict_one(
        self, pixels: Pixels, masks: object, *, name: str, values: Mapping[str, float]
    ) -> Iterable[tuple[Any, ...]]:
        if not isinstance(self.model, Refiner):
            return self._predict_photo(pixels, values["score_threshold"])
        return refine_photo(
            self.model,
            pixels,
            masks,
            name=name,
            max_change=values["max_change"],
            mask_bytes=self.recipe.evaluation.paste_bytes,
        )

    def _name_columns(self, rows: Iterable[tuple[Any, ...]]) -> list[dict[str, Any]]:
        return [dict(zip(_COLUMNS[self.task][1:-1], row, strict=True)) for row in rows]

    def _predict_photo(self, pixels: Pixels, threshold: float) -> Iterable[tuple[Any, ...]]:
        if self.task == "semantic":
            return [self._predict_label_map(pixels)]
        return self._predict_instances(pixels, threshold)

    def _predict_instances(self, pixels: Pixels, threshold: float) -> Iterator[tuple[Any, ...]]:
        """Yield the objects of a photo, best first."""
        (rows,) = self._detect([pixels])
        yield from (row for row in rows if row[2] >= threshold)

    def _detect(self, photos: Sequence[Pixels]) -> list[list[tuple[Any, ...]]]:
        """List the objects of photos of one size, best first."""
        batch = collate_images(photos, self.recipe.data).to(self.device)
        found = detect(self.model, batch, paste_bytes=self.recipe.evaluation.paste_bytes)
        return [[self._to_row(each) for each in detections] for detections in found]

    def _to_row(self, found: Detection) -> tuple[Any, ...]:
        name = self.categories[found.category_index].name
        rle = {"size": list(found.size_hw), "counts": found.rle_counts.decode()}
        return name, found.category_index, found.score, list(found.box_xyxy), rle

    def _predict_label_map(self, pixels: Pixels) -> tuple[Any, ...]:
        """Return the label map of a photo, its only row."""
        batch = collate_semantic.collate_images([pixels], self.recipe.data).to(self.device)
        (labels,) = label_batch(self.model, batch, self.recipe.evaluation)
        return describe_labels(labels, self.categories)


def load_predictor(folder: Path, *, device: str = "") -> Predictor:
    """Build a model from the artifacts of its version.

    Args:
        folder: with the artifacts.
        device: of the model; "" is that of DEVICE_VARIABLE, or a GPU if there is one.

    Raises:
        RecipeError: the recipe cannot be read.
        RegistryError: a file was changed after registration, or categories or weights do not fit
            the recipe.
    """
    if changed := checksums.find_changed(str(folder)):
        raise RegistryError(
            f"{' and '.join(changed)} of the model: changed after registration (SHA-256 differs). "
            "Take another version, or register the run again"
        )
    recipe = from_json((folder / RECIPE_FILE).read_text())
    device = device or os.environ.get(DEVICE_VARIABLE) or _default_device()
    return Predictor(
        model=_load_weights(recipe, folder / WEIGHTS_FILE).to(device).eval(),
        recipe=recipe,
        categories=categories_from_json((folder / CATEGORIES_FILE).read_text()),
        device=torch.device(device),
    )


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _load_weights(recipe: Recipe, weights: Path) -> nn.Module:
    """Build the model of a recipe on the CPU and load registered weights into it."""
    # The file covers the whole model, so the start weights of the recipe are not needed.
    with SkipRandomInit():
        model: nn.Module = build_model(without_weights(recipe.model))
    try:
        load_weights(model, weights)
    except ValueError as error:
        raise RegistryError(f"the registered weights cannot be loaded: {error}") from error
    return model


def _check_param(name: str, params: Mapping[str, Any]) -> float:
    value = float(params.get(name, _PARAMS[name]))
    if not 0 <= value <= 1:
        raise DatasetError(f"params: {name} must be in [0, 1], got {value}")
    return value


def _report(errors: Sequence[str], notices: ProblemCounts, *, total: int) -> None:
    """Log the photos that were left out, and what decoding changed.

    Raises:
        DatasetError: all photos were left out.
    """
    if errors:
        lines = "\n  ".join(errors)
        text = f"{len(errors)} of {total} images cannot be predicted:\n  {lines}"
        if len(errors) == total:
            raise DatasetError(
                f"{text}\nRepair or replace these images. Paths, encoded bytes and uint8 arrays "
                "(H, W, 3) are supported."
            )
        _log.warning("%s", text)
    if notices.counts:
        _log.warning("%s", format_problems(notices))


def _to_list(images: object) -> list[Any]:
    if isinstance(images, pd.DataFrame):
        if "image" not in images.columns:
            columns = ", ".join(map(str, images.columns)) or "none"
            raise DatasetError(f"the DataFrame has no column 'image'; its columns: {columns}")
        return list(images["image"])
    if isinstance(images, list | tuple):
        return list(images)
    raise DatasetError(
        f"predict takes a list of images or a DataFrame with a column 'image', got a "
        f"{type(images).__name__}; for one image: predict([image])"
    )
