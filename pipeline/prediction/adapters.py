"""Convert the rows of a prediction to the objects of other libraries: supervision and FiftyOne.

    rows = model.predict(["photo.jpg"])
    detections = to_supervision(rows)

Neither library is needed to predict; each function imports its own.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_api

from pipeline.errors import DatasetError, SetupError

Mask = NDArray[np.bool_]


class FoundObject(NamedTuple):
    """An object of a photo, or a class of its label map."""

    category_name: str
    category_index: int
    """Of a label map: the category id, which is the value in the map."""
    score: float | None
    """None for a class of a label map."""
    box_xyxy: tuple[float, float, float, float]
    """In pixels of the photo as stored."""
    mask: Mask
    """(H, W)."""


def to_supervision(rows: object, *, image: int | str | None = None) -> Any:  # noqa: ANN401
    """Convert the rows of a photo to `supervision.Detections`.

    Args:
        rows: what `predict` of a registered model returns, rows of `predict_photo`, or
            `detections` of a detections.json.
        image: the photo if there are several: its image_index, or its file_name in a
            detections.json.

    Returns:
        Detections with xyxy, mask (N, H, W), confidence, class_id and data["class_name"].
        class_id counts from 0 in the order of the model's categories. Of a label map a detection
        for each class, without confidence, whose class_id is the category id.

    Raises:
        DatasetError: the rows have another form, belong to several photos, or hold an error.
        SetupError: supervision is not installed.
    """
    supervision = _import("supervision")
    found = list_objects(rows, image=image)
    if not found:
        empty = supervision.Detections.empty()
        empty.data = {"class_name": np.array([], dtype=str)}
        return empty
    scores = [each.score for each in found]
    return supervision.Detections(
        xyxy=np.array([each.box_xyxy for each in found], np.float32),
        mask=np.stack([each.mask for each in found]),
        confidence=None if None in scores else np.array(scores, np.float32),
        class_id=np.array([each.category_index for each in found], int),
        data={"class_name": np.array([each.category_name for each in found])},
    )


def to_fiftyone(rows: object, *, image: int | str | None = None) -> Any:  # noqa: ANN401
    """Convert the rows of a photo to a label of FiftyOne, for a field of its sample.

    Args:
        rows: as `to_supervision` takes them.
        image: as there.

    Returns:
        `fiftyone.Detections` with relative boxes and the masks in them; boxes are extended to
        whole pixels, so that no pixel of a mask moves. Of a label map `fiftyone.Segmentation` with
        category ids as values.

    Raises:
        DatasetError: the rows have another form, belong to several photos, or hold an error.
        SetupError: FiftyOne is not installed.
    """
    fiftyone = _import("fiftyone")
    chosen = _choose(rows, image)
    if _is_label_map(chosen):
        return fiftyone.Segmentation(mask=_decode_labels(chosen[0]))
    return fiftyone.Detections(
        detections=[
            fiftyone.Detection(
                label=each.category_name,
                confidence=each.score,
                bounding_box=relative_box,
                mask=mask,
            )
            for each in list_objects(chosen)
            for relative_box, mask in [crop_mask(each)]
        ]
    )


def list_objects(rows: object, *, image: int | str | None = None) -> list[FoundObject]:
    """List the objects of a photo; for the arguments and errors see `to_supervision`."""
    chosen = _choose(rows, image)
    if _is_label_map(chosen):
        return _list_classes(chosen[0])
    return [_to_object(row) for row in chosen]


def crop_mask(found: FoundObject) -> tuple[list[float], Mask]:
    """Crop a mask to its box, which is extended to whole pixels and to all of the mask.

    Returns:
        x, y, width and height relative to the photo, and the mask in this box.
    """
    height, width = found.mask.shape
    rows, columns = np.flatnonzero(found.mask.any(axis=1)), np.flatnonzero(found.mask.any(axis=0))
    x0, y0, x1, y1 = found.box_xyxy
    left = int(min(np.floor(x0), *columns[:1], width - 1))
    top = int(min(np.floor(y0), *rows[:1], height - 1))
    right = int(max(np.ceil(x1), *(columns[-1:] + 1), left + 1))
    bottom = int(max(np.ceil(y1), *(rows[-1:] + 1), top + 1))
    box = [left / width, top / height, (right - left) / width, (bottom - top) / height]
    return box, found.mask[top:bottom, left:right]


def _import(name: str) -> Any:  # noqa: ANN401
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise SetupError(f"{name} is not installed", f"type: pip install {name}") from None


def _choose(rows: object, image: int | str | None) -> list[Mapping[str, Any]]:
    """Choose the rows of one photo."""
    listed = rows.to_dict("records") if hasattr(rows, "to_dict") else rows
    if not isinstance(listed, Sequence) or not all(isinstance(row, Mapping) for row in listed):
        raise DatasetError(
            f"rows are a DataFrame or a list of dicts, as predict returns them, got a "
            f"{type(rows).__name__}"
        )
    key = "file_name" if isinstance(image, str) else "image_index"
    photos = list(dict.fromkeys(row.get("image_index", row.get("file_name")) for row in listed))
    if image is None and len(photos) > 1:
        raise DatasetError(
            f"the rows belong to {len(photos)} photos; choose one: image={photos[0]!r}"
        )
    chosen = [row for row in listed if image is None or row.get(key) == image]
    if errors := [row["error"] for row in chosen if row.get("error")]:
        raise DatasetError(f"this photo was not predicted: {errors[0]}")
    return chosen


def _to_object(row: Mapping[str, Any]) -> FoundObject:
    if "score" not in row:
        raise DatasetError(
            f"a row has no score; rows of a detector or a label map are converted, this one has "
            f"{', '.join(map(str, row))}"
        )
    if "box_xyxy" in row:
        x0, y0, x1, y1 = row["box_xyxy"]
    else:
        x0, y0, width, height = row["bbox"]
        x1, y1 = x0 + width, y0 + height
    rle = row["rle"] if "rle" in row else row["segmentation"]
    mask = np.asarray(mask_api.decode(dict(rle)), dtype=bool)
    box = (float(x0), float(y0), float(x1), float(y1))
    return FoundObject(row["category_name"], int(row["category_index"]), row["score"], box, mask)


def _is_label_map(rows: Sequence[Mapping[str, Any]]) -> bool:
    return len(rows) == 1 and "label_map" in rows[0]


def _decode_labels(row: Mapping[str, Any]) -> NDArray[np.uint8]:
    labels = cv2.imdecode(np.frombuffer(row["label_map"], np.uint8), cv2.IMREAD_GRAYSCALE)
    return np.asarray(labels, dtype=np.uint8)


def _list_classes(row: Mapping[str, Any]) -> list[FoundObject]:
    labels = _decode_labels(row)
    found = []
    for value, name in zip(row["category_ids"], row["category_names"], strict=True):
        mask = labels == value
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        x0, y0, x1, y1 = map(float, box)
        found.append(FoundObject(name, int(value), None, (x0, y0, x1, y1), mask))
    return found
