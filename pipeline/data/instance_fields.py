"""The squeeze field of an instance, straight from its run lengths: the image is never painted.

The rule is that of `bsm.field.field_from_mask`, in float64 and in its order, and the bytes are
equal; that one is the readable reference, this one is what ingest runs on millions of masks.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.data.run_lengths import RunLengths

# Those of bsm.field, which is not imported: torch would cost every ingest worker 400 MB.
FRAME_SCALE = 1.5
FARTHEST = 127


def squeeze_field(
    mask: RunLengths, box_xyxy: NDArray[np.float32], *, side: int
) -> NDArray[np.int8]:
    """Measure the field of a mask over its box enlarged 1.5 times.

    Args:
        mask: the instance's mask.
        box_xyxy: (4,) as the row stores it: the frame follows from the float32 values.
        side: cells along a side of the field.

    Returns:
        (side, side).
    """
    height, width = mask.size_hw
    left, tx = _left_tap(box_xyxy[0], box_xyxy[2], side)
    top, ty = _left_tap(box_xyxy[1], box_xyxy[3], side)
    # One more pixel all around is 0: what lies outside the image is background.
    x0, x1 = _window(left, width)
    y0, y1 = _window(top, height)
    padded = np.zeros((y1 - y0 + 2, x1 - x0 + 2), dtype=np.float64)
    padded[1:-1, 1:-1] = paint(mask, x0, x1)[y0:y1]
    columns, next_columns = _inside(left, x0, x1), _inside(left + 1, x0, x1)
    across = (1 - tx) * padded[:, columns] + tx * padded[:, next_columns]
    rows, next_rows = _inside(top, y0, y1), _inside(top + 1, y0, y1)
    ty = ty[:, None]
    inside = ((1 - ty) * across[rows] + ty * across[next_rows] >= 0.5).astype(np.uint8)
    return field_of_grid(inside)


def field_of_grid(inside: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Measure the signed chessboard distance of every cell to the other side of the outline.

    Args:
        inside: (S, S) 0/1.
    """
    # DIST_C by a 3 x 3 mask is exact; where there is no other side it is huge, and clipped.
    within = cv2.distanceTransform(inside, cv2.DIST_C, 3)
    without = cv2.distanceTransform(1 - inside, cv2.DIST_C, 3)
    clipped = np.minimum(within, FARTHEST) - np.minimum(without, FARTHEST)
    field: NDArray[np.int8] = clipped.astype(np.int8)
    return field


def paint(mask: RunLengths, x0: int, x1: int) -> NDArray[np.uint8]:
    """Paint columns x0 to x1 of a mask, (height, x1 - x0), 0/1; only these are touched."""
    height = mask.size_hw[0]
    start, stop = x0 * height, x1 * height
    ends = np.clip(mask.runs.cumsum(), start, stop)
    runs = np.diff(ends, prepend=start)
    values = (np.arange(len(runs)) & 1).astype(np.uint8)
    return np.repeat(values, runs).reshape(x1 - x0, height).T


def _left_tap(
    start: np.float32, stop: np.float32, side: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Find the pixel left of each cell's center, and how far right of it the center lies."""
    low, high = np.float64(start), np.float64(stop)
    center, half = (low + high) / 2, (high - low) * (FRAME_SCALE / 2)
    low, high = center - half, center + half
    x = low + (np.arange(side) + 0.5) * ((high - low) / side) - 0.5
    left = np.floor(x)
    return left.astype(np.int64), x - left


def _window(left: NDArray[np.int64], size: int) -> tuple[int, int]:
    """The pixels of the image that the taps touch; at least one, so that there is a window."""
    start = min(max(int(left[0]), 0), size - 1)
    return start, min(max(int(left[-1]) + 2, start + 1), size)


def _inside(places: NDArray[np.int64], start: int, stop: int) -> NDArray[np.int64]:
    """Number places within the padded window; all outside fall on its border of zeros."""
    return np.clip(places - start + 1, 0, stop - start + 1)
