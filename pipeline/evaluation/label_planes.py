"""Predicted label maps as arrays: encode them, describe them, and place sliding windows.

K classes, H, W size of an image
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.data.manifest import Category
from pipeline.data.semantic_fields import encode_plane

LabelMap = NDArray[np.uint8]


class LabelRow(NamedTuple):
    """The prediction of a semantic model for one photo."""

    label_map: bytes
    """8-bit PNG whose values are category ids."""
    category_ids: list[int]
    """Of the classes in the map, by descending share."""
    category_names: list[str]
    pixel_shares: list[float]


def encode_labels(labels: LabelMap, categories: Sequence[Category]) -> bytes:
    """Encode a label map as PNG with the dataset's category ids as values."""
    values = np.zeros(256, np.uint8)
    values[: len(categories)] = [each.category_id for each in categories]
    return encode_plane(np.asarray(cv2.LUT(labels, values), dtype=np.uint8))


def describe_labels(labels: LabelMap, categories: Sequence[Category]) -> LabelRow:
    """Encode a label map (H, W) of class indices, and list its classes."""
    counts = np.bincount(labels.ravel(), minlength=len(categories))
    by_share = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)].tolist()
    present = [categories[index] for index in by_share]
    return LabelRow(
        encode_labels(labels, categories),
        [each.category_id for each in present],
        [each.name for each in present],
        (counts[by_share] / labels.size).tolist(),
    )


def window_starts(length: int, side: int, *, overlap: float) -> list[int]:
    """Compute the positions of windows along an edge: from end to end, at equal distances.

    Args:
        length: of the edge.
        side: of a window; at most the length.
        overlap: smallest share of a side that neighbors have in common.
    """
    stride = max(1, math.floor(side * (1 - overlap)))
    gaps = -(-(length - side) // stride)
    return [round(gap * (length - side) / gaps) for gap in range(gaps + 1)] if gaps else [0]
