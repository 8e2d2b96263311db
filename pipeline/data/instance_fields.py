"""Compute the squeeze field of an instance from its run lengths, without decoding the full mask.

Equal to `bsm.field.field_from_mask` byte for byte, with the same float64 operations in the same
order. That one is the readable reference, this one is fast enough for millions of masks.
"""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.data.run_lengths import RunLengths

# As in bsm.field, which is not imported: torch would cost every ingest worker 400 MB.
FRAME_SCALE = 1.5
FARTHEST = 127


class Taps(NamedTuple):
    """The place of centers along one axis between the pixels of a mask."""

    left: NDArray[np.int64]
    """The pixel left of each center, or above it."""
    distance: NDArray[np.float64]
    """Distance of each center from that pixel, 0..1."""


def compute_squeeze_field(
    mask: RunLengths, box_xyxy: NDArray[np.float32], *, side: int
) -> NDArray[np.int8]:
    """Compute the field of a mask over its box enlarged 1.5 times.

    Args:
        mask: the instance's mask.
        box_xyxy: (4,), in float32 as rows store it, because the frame depends on it.
        side: cells along a side of the field.

    Returns:
        (side, side).
    """
    height, width = mask.size_hw
    x, y = _find_taps(box_xyxy, side)
    x0, x1 = _clip_range(x.left, width)
    y0, y1 = _clip_range(y.left, height)
    pixels = decode_columns(mask, x0, x1)[y0:y1]
    return field_from_grid(sample_mask(pixels, (x0, y0), x, y))


def compute_patch_field(
    pixels: NDArray[np.uint8],
    corner_xy: tuple[int, int],
    box_xyxy: NDArray[np.float32],
    *,
    side: int,
) -> NDArray[np.int8]:
    """Compute the field of a mask that is given by its pixels; it is 0 around them.

    Args:
        pixels: (h, w) 0/1.
        corner_xy: of the pixels in the image.
        box_xyxy: (4,), as compute_squeeze_field takes it.
        side: cells along a side of the field.

    Returns:
        (side, side).
    """
    return field_from_grid(sample_mask(pixels, corner_xy, *_find_taps(box_xyxy, side)))


def sample_mask(
    pixels: NDArray[np.uint8], corner_xy: tuple[int, int], x: Taps, y: Taps
) -> NDArray[np.uint8]:
    """Sample a mask at a grid of centers: 1 where its bilinear mean is at least one half.

    Args:
        pixels: (h, w) 0/1; the mask is 0 around them.
        corner_xy: of the pixels in the image.
        x: of the columns of the grid.
        y: of the rows of the grid.

    Returns:
        (rows, columns) 0/1.
    """
    (height, width), (x0, y0) = pixels.shape, corner_xy
    # Padded with two pixels of 0, so a center beyond them has four. Columns first, as runs lie.
    padded = np.zeros((width + 4, height + 4), dtype=np.uint8)
    padded[2:-2, 2:-2] = pixels.T
    ones = padded[:-1] + padded[1:]
    ones = ones[:, :-1] + ones[:, 1:]
    columns, rows = _padded_index(x.left, x0, width), _padded_index(y.left, y0, height)
    ones = ones.take(columns, 0).take(rows, 1)
    # Only cells whose four pixels differ need numbers: those on the outline.
    inside = (ones == 4).view(np.uint8)
    mixed = np.flatnonzero(ones & 3)
    column, row = np.divmod(mixed, len(rows)) if len(mixed) else (mixed, mixed)
    upper_left = columns[column] * (height + 4) + rows[row]
    a, b, c, d = (padded.take(upper_left + step) for step in (0, height + 4, 1, height + 5))
    tx, ty = x.distance[column], y.distance[row]
    values = (1 - ty) * ((1 - tx) * a + tx * b) + ty * ((1 - tx) * c + tx * d)
    inside.put(mixed, values >= 0.5)
    return np.ascontiguousarray(inside.T)


def field_from_grid(inside: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Compute the signed chessboard distance of every cell to the other side of the boundary.

    Args:
        inside: (S, S) 0/1.
    """
    # DIST_C with a 3 x 3 mask is exact; without another side the distance is huge, and clipped.
    within = cv2.distanceTransform(inside, cv2.DIST_C, 3)
    without = cv2.distanceTransform(1 - inside, cv2.DIST_C, 3)
    clipped = np.minimum(within, FARTHEST) - np.minimum(without, FARTHEST)
    field: NDArray[np.int8] = clipped.astype(np.int8)
    return field


def decode_columns(mask: RunLengths, x0: int, x1: int) -> NDArray[np.uint8]:
    """Decode columns x0 to x1 of a mask to 0/1, (height, x1 - x0)."""
    height = mask.size_hw[0]
    start, stop = x0 * height, x1 * height
    ends = np.minimum(np.maximum(mask.runs.cumsum(), start), stop)
    runs = ends - np.concatenate([[start], ends[:-1]])
    values = (np.arange(len(runs)) & 1).astype(np.uint8)
    return np.repeat(values, runs).reshape(x1 - x0, height).T


def _find_taps(box_xyxy: NDArray[np.float32], side: int) -> tuple[Taps, Taps]:
    """Find the taps of a field's columns and rows."""
    x0, y0, x1, y1 = box_xyxy
    return _find_axis_taps(x0, x1, side), _find_axis_taps(y0, y1, side)


def _find_axis_taps(start: np.float32, stop: np.float32, side: int) -> Taps:
    low, high = np.float64(start), np.float64(stop)
    center, half = (low + high) / 2, (high - low) * (FRAME_SCALE / 2)
    low, high = center - half, center + half
    x = low + (np.arange(side) + 0.5) * ((high - low) / side) - 0.5
    left = np.floor(x)
    return Taps(left.astype(np.int64), x - left)


def _clip_range(left: NDArray[np.int64], size: int) -> tuple[int, int]:
    """Return the range of pixels that the taps touch, clipped to the image; at least one pixel."""
    start = min(max(int(left[0]), 0), size - 1)
    return start, min(max(int(left[-1]) + 2, start + 1), size)


def _padded_index(taps: NDArray[np.int64], start: int, length: int) -> NDArray[np.int64]:
    """Convert taps to indices of the padded range; all outside fall on its border of zeros."""
    # np.clip takes longer on so few values.
    return np.minimum(np.maximum(taps - start + 2, 0), length + 2)
