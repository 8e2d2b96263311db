"""Format the detections of a photo for clients: COCO run lengths, COCO polygons, or a picture."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_api

from pipeline.data.manifest import Category
from pipeline.data.photo import Pixels
from pipeline.report.draw import decode_instances, draw_instances

Rows = Sequence[Mapping[str, Any]]
"""Rows of `Predictor.predict_photos`."""


def to_coco(
    rows: Rows, categories: Sequence[Category], *, as_polygons: bool
) -> list[dict[str, Any]]:
    """Convert the rows of a photo to entries as in a COCO results file.

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


def draw_png(pixels: Pixels, rows: Rows) -> bytes:
    """Draw the detections on the photo, and encode it as a PNG of the photo's size."""
    encoded = io.BytesIO()
    picture = draw_instances(pixels, decode_instances(rows), min_side_px=1)
    picture.save(encoded, format="PNG", compress_level=3)
    return encoded.getvalue()


def _to_xywh(box_xyxy: Sequence[float]) -> list[float]:
    x0, y0, x1, y1 = box_xyxy
    return [x0, y0, x1 - x0, y1 - y0]
