"""Predict for a folder of photos with a registered model, and draw the predictions."""

import io
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from bsm.refine.refiner import Refiner
from pipeline import checksums, storage
from pipeline.data.label_png import read_values
from pipeline.data.manifest import Category
from pipeline.data.photo import PhotoError, Pixels, decode_photo
from pipeline.data.problems import KINDS, ProblemCounts, format_problems
from pipeline.errors import DatasetError, RecipeError, RegistryError
from pipeline.evaluation.mask_refinement import refine_segmentations
from pipeline.progress import log_progress
from pipeline.registry.photo_folder import PhotoFolder, list_photos
from pipeline.registry.versions import (
    ARTIFACTS_FOLDER,
    Version,
    download_file,
    find_version,
    is_model_uri,
)
from pipeline.report.draw import decode_instances, draw_instances
from pipeline.report.label_picture import assign_colors, draw_label_map
from pipeline.serving.artifacts import SCORE_THRESHOLD
from pipeline.serving.predictor import (
    OUT_OF_MEMORY,
    Predictor,
    describe_memory,
    load_predictor,
)
from pipeline.text import format_count
from pipeline.tracking.stores import resolve_tracking_uri

_log = logging.getLogger(__name__)

_PNG = ".png"
_JPEG = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})

_MAX_JPEG_SIDE_PX = 65_500


class RegisteredModel(NamedTuple):
    """A registered version, loaded into this process."""

    model: Predictor
    uri: str
    """models:/NAME/VERSION."""


class RegisteredRefiner(NamedTuple):
    """A registered refiner, loaded into this process."""

    model: Refiner
    uri: str
    """models:/NAME/VERSION."""


def load_registered_model(
    model_uri: str, *, tracking: str = "", storage_uri: str = "runs"
) -> RegisteredModel:
    """Load a registered model with the code of this package.

    mlflow.pyfunc.load_model uses the code stored with the model instead, which may be another
    version that cannot be imported beside this package.

    Args:
        model_uri: models:/NAME@champion or models:/NAME/VERSION.
        tracking: URI of the registry; "" means the embedded store under storage_uri.
        storage_uri: as a recipe's storage.

    Raises:
        RecipeError: this package cannot read the recipe of the model.
        RegistryError: there is no such model, or it cannot be loaded.
        StorageError: there is no such registry.
    """
    if not is_model_uri(model_uri):
        raise RegistryError(
            f"model {model_uri!r} must be models:/NAME@ALIAS or models:/NAME/VERSION"
        )
    version = find_version(
        model_uri, registry=resolve_tracking_uri(tracking, storage_uri=storage_uri)
    )
    return RegisteredModel(load_version(version), version.uri)


def load_version(version: Version, *, device: str = "") -> Predictor:
    """Load the files of a registered version into this process; see `load_predictor`."""
    with download_file(version, ARTIFACTS_FOLDER) as folder:
        try:
            return load_predictor(folder, device=device)
        except RegistryError as error:
            raise RegistryError(f"{version.uri}: {error}") from error


def load_refiner(
    model_uri: str, *, tracking: str = "", storage_uri: str = "runs"
) -> RegisteredRefiner:
    """Load a registered refiner with the code of this package.

    Raises:
        RegistryError: see `load_registered_model`, or it is not a refiner.
    """
    registered = load_registered_model(model_uri, tracking=tracking, storage_uri=storage_uri)
    if not isinstance(registered.model.model, Refiner):
        raise RegistryError(
            f"{registered.uri} is a model of task {registered.model.task}, not a refiner; train "
            "one with jobs/refine_coco.py"
        )
    return RegisteredRefiner(registered.model.model, registered.uri)


def predict_folder(
    registered: RegisteredModel,
    images: str,
    out: str | Path,
    *,
    score: float | None = None,
    refiner: RegisteredRefiner | None = None,
) -> dict[str, Any]:
    """Predict for every photo under a folder.

    Writes each photo with the predictions drawn on it to `out`, under the same name. For an
    instance model also out/detections.json; for a semantic model out/label_maps/, with a PNG of
    category ids per photo, and out/label_maps.json, which lists their classes. Photos that cannot
    be read are left out, and listed in that file and in the log with the reason.

    Args:
        registered: the model.
        images: folder, searched recursively; or one photo.
        out: local output folder; created if missing.
        score: score threshold of an instance model, 0.5 by default.
        refiner: refines the masks of an instance model; detections.json names it.

    Returns:
        images, left_out, seconds, out, model and the output files, for the RESULT line.

    Raises:
        RecipeError: a score or refiner is given for a semantic model, or the model is a refiner.
        DatasetError: there is no photo, or none that can be read.
    """
    started = time.perf_counter()
    is_semantic = registered.model.task == "semantic"
    if is_semantic and score is not None:
        raise RecipeError(f"{registered.uri} is a semantic model without scores: remove --score")
    if is_semantic and refiner:
        raise RecipeError(f"{registered.uri} is a semantic model without masks: remove --refine")
    if registered.model.task == "refine":
        raise RecipeError(
            f"{registered.uri} refines given masks and finds none itself; use it with "
            "jobs/refine.py, or beside a model that finds them: --model MODEL --refine "
            f"{registered.uri}"
        )
    folder = Path(out)
    listed = list_photos(Path(images), folder)
    photos = _Photos(listed, folder)
    written = (
        _write_label_maps(registered, photos)
        if is_semantic
        else _write_detections(
            registered,
            photos,
            score=SCORE_THRESHOLD if score is None else score,
            refiner=refiner,
        )
    )
    return {
        "images": len(listed.names) - len(photos.left_out),
        "left_out": len(photos.left_out),
        "other_files": len(listed.others),
        **written,
        "seconds": round(time.perf_counter() - started, 3),
        "out": str(folder),
        "model": registered.uri,
    }


class _Photos:
    """Photos to predict, those that could not be read, and the output folder."""

    def __init__(self, listed: PhotoFolder, out: Path) -> None:
        self.names = listed.names
        self.out = out
        self.left_out: list[dict[str, str]] = []
        self._root = listed.root
        self._problems = ProblemCounts()

    def read(self) -> Iterator[tuple[dict[str, Any], Pixels]]:
        """Yield the image entry and the pixels of each photo that can be read.

        Raises:
            DatasetError: after the last photo, if none can be read.
        """
        names = log_progress(self.names, "predict", total=len(self.names))
        for image_id, name in enumerate(names):
            pixels = self._decode(name)
            if pixels is not None:
                height, width = pixels.shape[:2]
                yield {"id": image_id, "file_name": name, "height": height, "width": width}, pixels
        if self._problems.counts:
            found = format_problems(self._problems)
            if len(self.left_out) == len(self.names):
                raise DatasetError(
                    f"none of {format_count(len(self.names), 'photo')} can be read, nothing was "
                    f"predicted. Replace them\n\n{found}"
                )
            _log.warning(
                "predict: left out %d of %d photos\n\n%s",
                *(len(self.left_out), len(self.names), found),
            )

    @contextmanager
    def leave_out_if_too_large(self, name: str) -> Iterator[None]:
        """Leave a photo out if there is not enough memory for it."""
        try:
            yield
        except OUT_OF_MEMORY as error:
            self._leave_out(name, "image_too_large", describe_memory(error))

    def save(self, picture: Image.Image, name: str) -> None:
        """Save the picture of a photo under its name, with another ending if it needs one."""
        can_be_jpeg = max(picture.size) <= _MAX_JPEG_SIDE_PX
        ending = Path(name).suffix.lower()
        if ending != _PNG and not (ending in _JPEG and can_be_jpeg):
            ending = ".jpg" if can_be_jpeg else _PNG
            while (name := name + ending) in self.names:
                pass
        encoded = io.BytesIO()
        if ending == _PNG:
            picture.save(encoded, format="PNG")
        else:
            picture.save(encoded, format="JPEG", quality=92)
        storage.write_bytes_atomic(str(self.out / name), encoded.getvalue())

    def _decode(self, name: str) -> Pixels | None:
        try:
            photo = decode_photo((self._root / name).read_bytes())
        except PhotoError as error:
            self._leave_out(name, error.kind, str(error))
            return None
        except OSError as error:
            self._leave_out(name, "image_unreadable", error.strerror or str(error))
            return None
        for kind, reason in photo.notices:
            self._problems.add(kind, f"{name}: {reason}")
        return photo.pixels

    def _leave_out(self, name: str, kind: str, reason: str) -> None:
        self.left_out.append({"file_name": name, "rule": KINDS[kind][1], "reason": reason})
        self._problems.add(kind, f"{name}: {reason}")


def _write_detections(
    registered: RegisteredModel,
    photos: _Photos,
    *,
    score: float,
    refiner: RegisteredRefiner | None,
) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    kept = 0
    for image, pixels in photos.read():
        name = image["file_name"]
        with photos.leave_out_if_too_large(name):
            detections = registered.model.predict_photo(pixels, score_threshold=score)
            if refiner:
                rles = [row["rle"] for row in detections]
                refined = refine_segmentations(refiner.model, pixels, rles)
                kept += refined.kept
                for row, rle in zip(detections, refined.segmentations, strict=True):
                    row["rle"] = rle
            photos.save(draw_instances(pixels, decode_instances(detections)), name)
            images.append(image)
            rows += [
                _to_coco(row, image["id"], name, registered.model.categories) for row in detections
            ]
    if images and not rows and score > 0:
        _log.warning("predict: no object has a score of %g or more; see others with --score", score)
    refined_by = {"refined_by": refiner.uri} if refiner else {}
    content = {
        **refined_by,
        "score_threshold": score,
        "images": images,
        "left_out": photos.left_out,
        "detections": rows,
    }
    file = photos.out / "detections.json"
    _write_json(file, registered, content)
    result = {"detections": len(rows), "detections_file": str(file)}
    return {**result, **refined_by, "kept": kept} if refiner else result


def _write_label_maps(registered: RegisteredModel, photos: _Photos) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    legend = assign_colors({each.category_id: each.name for each in registered.model.categories})
    folder = photos.out / "label_maps"
    stems = Counter(Path(name).with_suffix("") for name in photos.names)
    taken: set[Path] = set()
    for image, pixels in photos.read():
        name = image["file_name"]
        # a.jpg becomes a.png, or a.jpg.png if there is another photo a.
        stem = Path(name).with_suffix("")
        path = folder / (f"{stem}.png" if stems[stem] == 1 else f"{name}.png")
        while path in taken:
            path = path.with_name(f"{path.name}.png")
        taken.add(path)
        with photos.leave_out_if_too_large(name):
            (row,) = registered.model.predict_photo(pixels)
            labels = read_values(row["label_map"], bits=8, max_pixels=None)
            photos.save(draw_label_map(pixels, labels, legend), name)
            storage.write_bytes_atomic(str(path), row["label_map"])
            lists = (row["category_ids"], row["category_names"], row["pixel_shares"])
            classes = [
                {"category_id": key, "name": named, "pixel_share": share}
                for key, named, share in zip(*lists, strict=True)
            ]
            label_map = path.relative_to(photos.out).as_posix()
            images.append({**image, "label_map": label_map, "classes": classes})
    file = photos.out / "label_maps.json"
    _write_json(file, registered, {"images": images, "left_out": photos.left_out})
    return {"label_maps": str(folder), "label_maps_file": str(file)}


def _write_json(file: Path, registered: RegisteredModel, content: dict[str, Any]) -> None:
    categories = [asdict(each) for each in registered.model.categories]
    document = {"model": registered.uri, "categories": categories, **content}
    checksums.write_file(str(file), (json.dumps(document, indent=1) + "\n").encode())


def _to_coco(
    row: dict[str, Any], image_id: int, file_name: str, categories: tuple[Category, ...]
) -> dict[str, Any]:
    x0, y0, x1, y1 = row["box_xyxy"]
    return {
        "image_id": image_id,
        "file_name": file_name,
        "category_id": categories[row["category_index"]].category_id,
        "category_index": row["category_index"],
        "category_name": row["category_name"],
        "score": row["score"],
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "segmentation": row["rle"],
    }
