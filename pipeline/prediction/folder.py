"""Predict for photos with a loaded model, and write the predictions."""

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pipeline import storage
from pipeline.data.label_png import read_values
from pipeline.data.photo import Pixels
from pipeline.errors import RecipeError
from pipeline.prediction.augmented import predict_views
from pipeline.prediction.files import (
    MAX_IDS,
    cut_out,
    draw_ids,
    format_yolo,
    format_yolo_names,
    to_coco,
    write_json,
    write_png,
)
from pipeline.prediction.options import Format, PredictOptions
from pipeline.prediction.photo_folder import list_photos
from pipeline.prediction.photo_model import LoadedModel, PredictRows, Rows
from pipeline.prediction.photos import Photos
from pipeline.prediction.tiles import predict_tiles
from pipeline.report.draw import draw_instances, list_instances
from pipeline.report.label_picture import assign_colors, draw_label_map
from pipeline.serving.artifacts import SCORE_THRESHOLD

if TYPE_CHECKING:
    from bsm.refine.refiner import Refiner

_log = logging.getLogger(__name__)

DEFAULTS = PredictOptions()


class LoadedRefiner(Protocol):
    """A refiner and its name."""

    @property
    def model(self) -> "Refiner":
        """The refiner."""

    @property
    def uri(self) -> str:
        """models:/NAME/VERSION."""


class _Prediction(NamedTuple):
    """A way to predict photos, and what the result says about it."""

    predict: PredictRows
    model: LoadedModel
    formats: Sequence[Format]
    score: float
    refiner: LoadedRefiner | None

    @property
    def refined_by(self) -> dict[str, str]:
        return {"refined_by": self.refiner.uri} if self.refiner else {}


def predict_folder(
    loaded: LoadedModel,
    images: str | Sequence[str],
    out: str | Path,
    *,
    score: float | None = None,
    refiner: LoadedRefiner | None = None,
    options: PredictOptions = DEFAULTS,
) -> dict[str, Any]:
    """Predict for every photo under a folder.

    Writes the formats of `options` to `out`, under the names of the photos. For an instance model
    also out/detections.json, unless other formats were chosen; for a semantic model
    out/label_maps.json, which lists the classes of each photo. Photos that cannot be read are left
    out, and listed in that file and in the log with the reason.

    Args:
        loaded: the model.
        images: folders, searched recursively, photos or patterns such as photos/*.jpg.
        out: local output folder; created if missing.
        score: score threshold of an instance model, 0.5 by default.
        refiner: refines the masks of an instance model; detections.json names it.
        options: how to predict, and what to write.

    Returns:
        images, left_out, seconds, out, model and the output files, for the RESULT line.

    Raises:
        RecipeError: an option does not fit the model.
        DatasetError: there is no photo, or none that can be read.
    """
    started = time.perf_counter()
    check_options(loaded, score=score, refiner=refiner, options=options)
    is_semantic = loaded.model.task == "semantic"
    formats = options.choose_formats(is_semantic=is_semantic, is_video=False)
    folder = Path(out)
    listed = list_photos([images] if isinstance(images, str) else images, folder)
    photos = Photos(listed, folder)
    threshold = SCORE_THRESHOLD if score is None else score
    prediction = _Prediction(
        make_predict(loaded, options, score=threshold), loaded, formats, threshold, refiner
    )
    write = _write_label_maps if is_semantic else _write_detections
    written = write(prediction, photos)
    return {
        "images": len(listed.names) - len(photos.left_out),
        "left_out": len(photos.left_out),
        "other_files": len(listed.others),
        **written,
        "seconds": round(time.perf_counter() - started, 3),
        "out": str(folder),
        "model": loaded.uri,
    }


def check_options(
    loaded: LoadedModel,
    *,
    score: float | None,
    refiner: LoadedRefiner | None,
    options: PredictOptions,
) -> None:
    """Raise a RecipeError if an option does not fit the model."""
    options.check()
    is_semantic = loaded.model.task == "semantic"
    if is_semantic and score is not None:
        raise RecipeError(f"{loaded.uri} is a semantic model without scores: remove --score")
    if is_semantic and refiner:
        raise RecipeError(f"{loaded.uri} is a semantic model without masks: remove --refine")
    if loaded.model.task == "refine":
        raise RecipeError(
            f"{loaded.uri} refines given masks and finds none itself; use it with "
            "python jobs/refine.py, or beside a model that finds them: --model MODEL --refine "
            f"{loaded.uri}"
        )


def make_predict(loaded: LoadedModel, options: PredictOptions, *, score: float) -> PredictRows:
    """Make the function that predicts a photo: whole or in tiles, once or in several views."""
    model, is_semantic = loaded.model, loaded.model.task == "semantic"
    predict: PredictRows
    if options.has_views:
        predict = partial(
            predict_views,
            model,
            scales=options.scales,
            flip=options.flip,
            score_threshold=score,
        )
    else:
        predict = partial(model.predict_photo, score_threshold=0 if is_semantic else score)
    if options.tile is None:
        return predict
    return partial(
        predict_tiles,
        predict,
        categories=model.categories,
        is_semantic=is_semantic,
        side=options.tile,
        overlap=options.tile_overlap,
    )


def _write_detections(prediction: _Prediction, photos: Photos) -> dict[str, Any]:
    categories = prediction.model.model.categories
    images: list[dict[str, Any]] = []
    rows: Rows = []
    kept = 0
    for image, pixels in photos.read():
        name = image["file_name"]
        with photos.leave_out_if_too_large(name):
            found = prediction.predict(pixels)
            kept += _refine(prediction, pixels, found)
            _write_photo(prediction.formats, photos, name, pixels, found)
            images.append(image)
            rows += [to_coco(row, image["id"], name, categories) for row in found]
    if images and not rows:
        hint = "; see others with --score" if prediction.score > 0 else ""
        _log.warning("predict: no object has a score of %g or more%s", prediction.score, hint)
    if "yolo-seg" in prediction.formats:
        names = format_yolo_names(categories).encode()
        storage.write_bytes_atomic(str(photos.out / "data.yaml"), names)
    result: dict[str, Any] = {"detections": len(rows)}
    if "coco" in prediction.formats:
        file = photos.out / "detections.json"
        head = describe_model(prediction.model) | prediction.refined_by
        content = {"score_threshold": prediction.score, "images": images}
        write_json(file, {**head, **content, "left_out": photos.left_out, "detections": rows})
        result["detections_file"] = str(file)
    return {**result, **prediction.refined_by, "kept": kept} if prediction.refiner else result


def describe_model(loaded: LoadedModel) -> dict[str, Any]:
    """Name the model and its categories, as result files start."""
    return {"model": loaded.uri, "categories": [asdict(each) for each in loaded.model.categories]}


def _refine(prediction: _Prediction, pixels: Pixels, rows: Rows) -> int:
    """Refine the masks of rows in place, and return how many were kept as they are."""
    if prediction.refiner is None:
        return 0
    from pipeline.evaluation.mask_refinement import (  # noqa: PLC0415  it imports torch
        refine_segmentations,
    )

    refined = refine_segmentations(prediction.refiner.model, pixels, [row["rle"] for row in rows])
    for row, rle in zip(rows, refined.segmentations, strict=True):
        row["rle"] = rle
    return refined.kept


def _write_photo(
    formats: Iterable[Format], photos: Photos, name: str, pixels: Pixels, rows: Rows
) -> None:
    """Write the files of one photo."""
    size_hw = (pixels.shape[0], pixels.shape[1])
    if "overlay" in formats:
        photos.save(draw_instances(pixels, list_instances(rows)), name)
    if "label-png" in formats:
        if len(rows) > MAX_IDS:
            _log.warning(
                "predict: %s has %d objects; its label PNG has the best %d",
                *(name, len(rows), MAX_IDS),
            )
        write_png(photos.name_file("label_png", name, ".png"), draw_ids(rows, size_hw))
    if "yolo-seg" in formats:
        text = format_yolo(rows, size_hw).encode()
        storage.write_bytes_atomic(str(photos.name_file("labels", name, ".txt")), text)
    if "cutout" in formats:
        _write_cutouts(photos, name, pixels, rows)


def _write_cutouts(photos: Photos, name: str, pixels: Pixels, rows: Rows) -> None:
    path = photos.name_file("cutouts", name, ".png")
    for index, row in enumerate(rows):
        piece = cut_out(pixels, row)
        category = "".join(c if c.isalnum() else "_" for c in row["category_name"])
        if piece is not None:
            write_png(path.with_name(f"{path.stem}_{index:03d}_{category}.png"), piece)


def _write_label_maps(prediction: _Prediction, photos: Photos) -> dict[str, Any]:
    categories = prediction.model.model.categories
    legend = assign_colors({each.category_id: each.name for each in categories})
    images: list[dict[str, Any]] = []
    for image, pixels in photos.read():
        name = image["file_name"]
        path = photos.name_file("label_maps", name, ".png")
        with photos.leave_out_if_too_large(name):
            (row,) = prediction.predict(pixels)
            if "overlay" in prediction.formats:
                labels = read_values(row["label_map"], bits=8, max_pixels=None)
                photos.save(draw_label_map(pixels, labels, legend), name)
            entry = dict(image)
            if "label-png" in prediction.formats:
                storage.write_bytes_atomic(str(path), row["label_map"])
                entry["label_map"] = path.relative_to(photos.out).as_posix()
            lists = (row["category_ids"], row["category_names"], row["pixel_shares"])
            entry["classes"] = [
                {"category_id": key, "name": named, "pixel_share": share}
                for key, named, share in zip(*lists, strict=True)
            ]
            images.append(entry)
    file = photos.out / "label_maps.json"
    write_json(
        file, {**describe_model(prediction.model), "images": images, "left_out": photos.left_out}
    )
    return {"label_maps": str(photos.out / "label_maps"), "label_maps_file": str(file)}
