"""Write predicted objects in the formats of other programs."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as mask_api

from pipeline import checksums, storage
from pipeline.data.manifest import Category
from pipeline.data.photo import Pixels

MAX_IDS = 254
"""Objects of an 8-bit label PNG: 0 is background, and 255 is void."""

_SOFT_SIGMA_PX = 0.8
"""Blur of a cut-out's alpha: the boundary becomes about two pixels soft on either side."""
_SOFT_REACH_PX = 2

Row = Mapping[str, Any]


def to_coco(
    row: Row, image_id: int, file_name: str, categories: Sequence[Category]
) -> dict[str, Any]:
    """Convert a row of a prediction to one of detections.json."""
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


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file with its checksum."""
    checksums.write_file(str(path), (json.dumps(content, indent=1) + "\n").encode())


def write_png(path: Path, values: NDArray[np.uint8]) -> None:
    """Write an array as PNG."""
    encoded = io.BytesIO()
    Image.fromarray(values).save(encoded, format="PNG")
    storage.write_bytes_atomic(str(path), encoded.getvalue())


def draw_ids(rows: Sequence[Row], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Draw object ids (H, W), 1 for the best row; where objects overlap, the better one is on top.

    Rows after the first MAX_IDS are left out.
    """
    values = np.zeros(size_hw, np.uint8)
    for index, row in reversed(list(enumerate(rows[:MAX_IDS], start=1))):
        values[_decode(row) > 0] = index
    return values


def format_yolo(rows: Sequence[Row], size_hw: tuple[int, int]) -> str:
    """Format objects as lines of a category index and a polygon, with coordinates from 0 to 1.

    An object of several pieces is one polygon, joined by lines without width; holes are filled,
    because the format has none.
    """
    height, width = size_hw
    lines = []
    for row in rows:
        points = _trace_outline(_decode(row))
        if len(points) >= 3:
            shares = (points / [width, height]).clip(0, 1).round(6)
            numbers = " ".join(f"{each:g}" for each in shares.ravel())
            lines.append(f"{row['category_index']} {numbers}\n")
    return "".join(lines)


def format_yolo_names(categories: Sequence[Category]) -> str:
    """Format data.yaml; names are quoted as JSON, which is YAML too."""
    names = "".join(
        f"  {each.category_index}: {json.dumps(each.name, ensure_ascii=False)}\n"
        for each in categories
    )
    return f"names:\n{names}"


def cut_out(pixels: Pixels, row: Row) -> NDArray[np.uint8] | None:
    """Cut an object out of a photo, (h, w, 4) RGBA with soft alpha at its boundary.

    Returns:
        The object's part of the photo; None if its mask is empty.
    """
    mask = _decode(row)
    left, top, width, height = (int(each) for each in mask_api.toBbox(row["rle"]))
    if not width or not height:
        return None
    reach = _SOFT_REACH_PX
    rows = slice(max(0, top - reach), min(mask.shape[0], top + height + reach))
    columns = slice(max(0, left - reach), min(mask.shape[1], left + width + reach))
    # The border is repeated: an object that the photo's edge cuts stays opaque there.
    alpha = cv2.GaussianBlur(
        255 * mask[rows, columns], (0, 0), _SOFT_SIGMA_PX, borderType=cv2.BORDER_REPLICATE
    )
    return np.dstack([pixels[rows, columns], alpha]).astype(np.uint8)


def _decode(row: Row) -> NDArray[np.uint8]:
    return np.asarray(mask_api.decode(row["rle"]), dtype=np.uint8)


def _trace_outline(mask: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Trace the outlines of all pieces as one polygon (points, 2), through the pixels' centers."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    pieces = [each[:, 0] for each in contours if len(each) >= 3]
    if not pieces:
        return np.empty((0, 2))
    # To each piece, around it and back: every joining line is walked twice.
    closed = [np.concatenate([piece, piece[:1]]) for piece in pieces] if len(pieces) > 1 else pieces
    back = [piece[:1] for piece in pieces[-2::-1]]
    return np.concatenate([*closed, *back]).astype(np.float64) + 0.5
