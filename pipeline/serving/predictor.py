"""Predict for photos with a registered model: a row per detection, or per image for label maps.

    predictor = load_predictor(folder / "artifacts")
    rows = predictor.predict(["photo.jpg", encoded_bytes, array], params={"score_threshold": 0.5})

Photos are predicted one by one, so a prediction does not depend on the rest of the request.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import torch
from torch import nn

from bsm.build import build_model
from bsm.checkpoints.weights import load_weights
from bsm.configs.models import without_weights
from pipeline.data import collate_semantic
from pipeline.data.collate import collate_images
from pipeline.data.manifest import Category
from pipeline.data.photo import Pixels
from pipeline.data.schema import Task
from pipeline.errors import DatasetError, RegistryError
from pipeline.evaluation.infer import detect
from pipeline.evaluation.label_maps import encode_labels, label_batch
from pipeline.recipe import Recipe, from_json
from pipeline.serving.artifacts import (
    CATEGORIES_FILE,
    RECIPE_FILE,
    SCORE_THRESHOLD,
    WEIGHTS_FILE,
    categories_from_json,
)
from pipeline.serving.photos import check_photos, read_photo

DEVICE_VARIABLE = "BSM_DEVICE"
"""Environment variable that names the device; by default a GPU if there is one."""

DETECTION_COLUMNS = (
    "image_index",
    "category_name",
    "category_index",
    "score",
    "box_xyxy",
    "rle",
)
"""Columns of an instance model. box_xyxy holds four floats in pixels of the photo, rle COCO's dict
of size and counts."""

LABEL_COLUMNS = ("image_index", "label_map", "category_ids", "category_names", "pixel_shares")
"""Columns of a semantic model. label_map is an 8-bit PNG of the photo's size whose values are
category ids, as in the label files of the dataset. The lists hold the categories in the map, by
descending pixel share, and their shares."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictor:
    """A model in evaluation mode, with everything that it needs to predict."""

    model: nn.Module
    recipe: Recipe
    categories: tuple[Category, ...]
    device: torch.device

    @property
    def task(self) -> Task:
        """Task of the model: instance or semantic."""
        return self.recipe.model.task

    def predict(self, images: object, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Predict for photos.

        Args:
            images: list of paths, encoded files as bytes (base64 text over REST) and uint8 arrays
                (H, W, 3) in RGB, in any mixture; or a DataFrame with such a column `image`. EXIF
                orientation is not applied.
            params: score_threshold of an instance model, 0.5 by default. The model itself drops
                detections below the recipe's box_head.score_threshold.

        Returns:
            Rows with the columns DETECTION_COLUMNS or LABEL_COLUMNS.

        Raises:
            DatasetError: some images cannot be read; the message names each of them, and nothing
                is predicted. Or score_threshold is not in [0, 1].
        """
        photos = _to_list(images)
        check_photos(photos)
        is_semantic = self.task == "semantic"
        predict_photo = self._predict_label_map if is_semantic else self._predict_instances
        rows = [
            (index, *row)
            for index, photo in enumerate(photos)
            for row in predict_photo(read_photo(photo, name=f"image {index}"), params or {})
        ]
        columns = LABEL_COLUMNS if is_semantic else DETECTION_COLUMNS
        return pd.DataFrame(rows, columns=list(columns))

    def _predict_instances(
        self, pixels: Pixels, params: Mapping[str, Any]
    ) -> Iterator[tuple[Any, ...]]:
        """Yield the objects of a photo, best first."""
        threshold = float(params.get("score_threshold", SCORE_THRESHOLD))
        if not 0 <= threshold <= 1:
            raise DatasetError(f"params: score_threshold must be in [0, 1], got {threshold}")
        batch = collate_images([pixels], self.recipe.data).to(self.device)
        (detections,) = detect(self.model, batch, paste_bytes=self.recipe.evaluation.paste_bytes)
        for each in detections:
            if each.score >= threshold:
                name = self.categories[each.category_index].name
                rle = {"size": list(each.size_hw), "counts": each.rle_counts.decode()}
                yield name, each.category_index, each.score, list(each.box_xyxy), rle

    def _predict_label_map(
        self, pixels: Pixels, _params: Mapping[str, Any]
    ) -> Iterator[tuple[Any, ...]]:
        """Yield the label map of a photo, as its only row."""
        batch = collate_semantic.collate_images([pixels], self.recipe.data).to(self.device)
        (labels,) = label_batch(self.model, batch, self.recipe.evaluation)
        counts = np.bincount(labels.ravel(), minlength=len(self.categories))
        by_share = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)].tolist()
        present = [self.categories[index] for index in by_share]
        yield (
            encode_labels(labels, self.categories),
            [each.category_id for each in present],
            [each.name for each in present],
            (counts[by_share] / labels.size).tolist(),
        )


def load_predictor(folder: Path) -> Predictor:
    """Build a model from the artifacts of its version, on the device of this process.

    Raises:
        RecipeError: the recipe cannot be read.
        RegistryError: categories or weights do not fit the recipe.
    """
    recipe = from_json((folder / RECIPE_FILE).read_text())
    device = torch.device(
        os.environ.get(DEVICE_VARIABLE) or ("cuda" if torch.cuda.is_available() else "cpu")
    )
    return Predictor(
        model=load_registered_weights(recipe, folder / WEIGHTS_FILE).to(device).eval(),
        recipe=recipe,
        categories=categories_from_json((folder / CATEGORIES_FILE).read_text()),
        device=device,
    )


def load_registered_weights(recipe: Recipe, weights: Path) -> nn.Module:
    """Build the model of a recipe on the CPU and load registered weights into it.

    Raises:
        RegistryError: the weights do not fit the recipe.
    """
    # The file covers the whole model, so the start weights of the recipe are not needed.
    model: nn.Module = build_model(without_weights(recipe.model))
    try:
        load_weights(model, weights)
    except ValueError as error:
        raise RegistryError(f"the registered weights cannot be loaded: {error}") from error
    return model


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
