"""Format what a model found in a photo: as entries of COCO's files, label maps or pictures."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as mask_api

from pipeline.data.manifest import Category
from pipeline.data.photo import Pixels
from pipeline.evaluation.mask_refinement import to_segmentation
from pipeline.recipe import ModelTask
from pipeline.report.draw import PALETTE, Color, EncodedInstance, draw_instances, list_instances
from pipeline.report.label_picture import assign_colors, draw_label_map

Rows = Sequence[Mapping[str, Any]]
"""Rows of `Predictor.predict_photos` or `Predictor.refine_masks`."""


def to_detections(
    rows: Rows, categories: Sequence[Category], *, as_polygons: bool
) -> list[dict[str, Any]]:
    """Convert the detections of a photo to entries as in a COCO results file.

    Args:
        rows: best first.
        categories: of the model.
        as_polygons: segmentation as polygons instead of compressed run lengths.
    """
    return [
        {
            "category_id": categories[row["category_index"]].category_id,
            "category_name": row["category_name"],
            "score": row["score"],
            "bbox": _to_xywh(row["box_xyxy"]),
            "segmentation": to_polygons(row["rle"]) if as_polygons else row["rle"],
        }
        for row in rows
    ]


def to_segments(row: Mapping[str, Any], *, with_masks: bool) -> list[dict[str, Any]]:
    """List the classes of a label map, the largest first, as in COCO's results of stuff.

    Args:
        row: of the photo.
        with_masks: add the segmentation of each class, as compressed run lengths.
    """
    labels = decode_labels(row["label_map"])
    found = zip(row["category_ids"], row["category_names"], row["pixel_shares"], strict=True)
    segments = [
        {"category_id": value, "category_name": name, "area": round(share * labels.size)}
        for value, name, share in found
    ]
    if with_masks:
        for each in segments:
            each["segmentation"] = _to_rle(labels == each["category_id"])
    return segments


def to_refined(rows: Rows, *, as_polygons: bool, with_given: bool) -> list[dict[str, Any]]:
    """Convert refined masks to entries in the order in which the masks were given.

    Args:
        rows: with the given mask in `given`.
        as_polygons: segmentation as polygons instead of compressed run lengths.
        with_given: add the given mask, in the same form.
    """
    convert = to_polygons if as_polygons else dict
    return [
        {
            "segmentation": convert(row["rle"]),
            "change": row["change"],
            "confidence": row["confidence"],
            "kept": row["kept"],
        }
        | ({"given": convert(to_segmentation(row["given"]))} if with_given else {})
        for row in rows
    ]


def to_polygons(rle: Mapping[str, Any]) -> list[list[float]]:
    """Outline a mask by polygons [x0, y0, x1, y1, ...], in pixels; holes are left out.

    Corners are a quarter of a pixel inside the mask's edge: every program that fills the polygons
    gets the same pixels, however it rounds.
    """
    mask: NDArray[np.uint8] = mask_api.decode(dict(rle))
    # In a mask of twice the size, the border of each pixel is a line of pixels of its own.
    twice = mask.repeat(2, axis=0).repeat(2, axis=1)
    found, _ = cv2.findContours(twice, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [((each[:, 0] + 0.5) / 2).ravel().tolist() for each in found]


def decode_labels(png: bytes) -> NDArray[np.uint8]:
    """Decode the label map (H, W) of a row."""
    labels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_GRAYSCALE)
    return np.asarray(labels, dtype=np.uint8)


def encode_base64(data: bytes) -> str:
    """Encode a file for JSON."""
    return base64.b64encode(data).decode()


def draw_detections(pixels: Pixels, rows: Rows) -> bytes:
    """Draw the detections on the photo, and encode it as a PNG of the photo's size."""
    return _encode(draw_instances(pixels, list_instances(rows), min_side_px=1))


def draw_refined(pixels: Pixels, rows: Rows) -> bytes:
    """Draw refined masks with their numbers on the photo, as a PNG of the photo's size."""
    instances = [
        EncodedInstance(row["rle"], str(index), PALETTE[index % len(PALETTE)])
        for index, row in enumerate(rows)
    ]
    return _encode(draw_instances(pixels, instances, min_side_px=1))


def draw_labels(pixels: Pixels, row: Mapping[str, Any], categories: Sequence[Category]) -> bytes:
    """Draw a label map on the photo, with a legend below, and encode it as PNG."""
    classes = assign_colors({each.category_id: each.name for each in categories})
    labels = decode_labels(row["label_map"])
    return _encode(draw_label_map(pixels, labels, classes, min_side_px=1))


def list_colors(categories: Sequence[Category], task: ModelTask) -> list[Color]:
    """List the color that each category has in pictures, in the order of category_index."""
    if task == "semantic":
        classes = assign_colors({each.category_id: each.name for each in categories})
        return [each.color for each in classes]
    return [PALETTE[index % len(PALETTE)] for index in range(len(categories))]


def _to_rle(mask: NDArray[np.bool_]) -> dict[str, Any]:
    packed = mask_api.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": packed["counts"].decode()}


def _to_xywh(box_xyxy: Sequence[float]) -> list[float]:
    x0, y0, x1, y1 = box_xyxy
    return [x0, y0, x1 - x0, y1 - y0]


def _encode(picture: Image.Image) -> bytes:
    encoded = io.BytesIO()
    picture.save(encoded, format="PNG", compress_level=3)
    return encoded.getvalue()
