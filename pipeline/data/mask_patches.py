"""Masks as the pixels of their boxes: crop, flip, move, resize and cover them.

A mask of an image is mostly zeros. A patch holds the rest, so what crops and pasted objects do to
a mask costs what the object is large.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.data.instance_fields import Taps, compute_patch_field, decode_columns, sample_mask
from pipeline.data.run_lengths import RunLengths, decode_counts
from pipeline.data.schema import FIELD_SIDE

WindowXyxy: TypeAlias = tuple[int, int, int, int]
"""A part of an image in whole pixels, half-open."""


class Patch(NamedTuple):
    """The smallest part of a mask that holds all its ones."""

    x: int
    y: int
    pixels: NDArray[np.uint8]
    """(h, w) 0/1."""

    @property
    def box_xyxy(self) -> WindowXyxy:
        """The box around the mask in whole pixels, half-open."""
        height, width = self.pixels.shape
        return self.x, self.y, self.x + width, self.y + height

    @property
    def area_px(self) -> int:
        """Number of pixels in the mask."""
        return int(np.count_nonzero(self.pixels))

    def move(self, dx: int, dy: int) -> "Patch":
        """Move the mask."""
        return self._replace(x=self.x + dx, y=self.y + dy)

    def flip(self, width_px: int) -> "Patch":
        """Mirror the mask in an image of this width."""
        return Patch(width_px - self.box_xyxy[2], self.y, self.pixels[:, ::-1])


EMPTY = Patch(0, 0, np.zeros((0, 0), dtype=np.uint8))
"""A mask without pixels."""


def decode_patch(counts: bytes, size_hw: tuple[int, int]) -> Patch:
    """Decode COCO's compressed counts of a mask that is not empty.

    Args:
        counts: as a row stores them.
        size_hw: of the image.
    """
    mask = RunLengths(size_hw=size_hw, encoded=counts, runs=decode_counts(counts, size_hw))
    x0, y0, x1, y1 = mask.box_xyxy
    return Patch(x0, y0, decode_columns(mask, x0, x1)[y0:y1])


def trim_patch(patch: Patch) -> Patch | None:
    """Drop rows and columns without ones at the border; None if there are no ones."""
    rows = np.flatnonzero(patch.pixels.any(axis=1))
    columns = np.flatnonzero(patch.pixels.any(axis=0))
    if not len(rows):
        return None
    part = patch.pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Patch(patch.x + int(columns[0]), patch.y + int(rows[0]), part)


def crop_patch(patch: Patch, window_xyxy: WindowXyxy) -> Patch | None:
    """Keep what lies in a window, and count from its corner; None if nothing does."""
    left, top, right, bottom = window_xyxy
    x0, y0, x1, y1 = patch.box_xyxy
    rows = slice(max(top - y0, 0), max(min(bottom, y1) - y0, 0))
    columns = slice(max(left - x0, 0), max(min(right, x1) - x0, 0))
    part = patch.pixels[rows, columns]
    return trim_patch(Patch(max(x0, left) - left, max(y0, top) - top, part))


def resize_patch(
    patch: Patch, size_hw: tuple[int, int], new_size_hw: tuple[int, int]
) -> Patch | None:
    """Resize a mask with its image: a pixel is inside if its bilinear mean is at least one half.

    Args:
        patch: the mask.
        size_hw: of its image.
        new_size_hw: of the resized image.

    Returns:
        The resized mask; None if no pixel is inside.
    """
    if size_hw == new_size_hw:
        return patch
    x0, y0, x1, y1 = patch.box_xyxy
    left, x = _find_taps(x0, x1, size_hw[1], new_size_hw[1])
    top, y = _find_taps(y0, y1, size_hw[0], new_size_hw[0])
    return trim_patch(Patch(left, top, sample_mask(patch.pixels, (x0, y0), x, y)))


def cover_patch(patch: Patch, cover: Patch) -> Patch | None:
    """Remove from a mask what another one covers.

    Returns:
        The same patch if that is nothing; None if it is all.
    """
    x0, y0, x1, y1 = patch.box_xyxy
    left, top, right, bottom = cover.box_xyxy
    low_x, low_y = max(x0, left), max(y0, top)
    high_x, high_y = min(x1, right), min(y1, bottom)
    if low_x >= high_x or low_y >= high_y:
        return patch
    over = cover.pixels[low_y - top : high_y - top, low_x - left : high_x - left]
    part = (slice(low_y - y0, high_y - y0), slice(low_x - x0, high_x - x0))
    if not (patch.pixels[part] & over).any():
        return patch
    pixels = patch.pixels.copy()
    pixels[part] &= 1 - over
    return trim_patch(patch._replace(pixels=pixels))


def unite_patches(patches: Sequence[Patch]) -> Patch:
    """Unite masks."""
    boxes = np.array([patch.box_xyxy for patch in patches])
    (x0, y0), (x1, y1) = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    pixels = np.zeros((y1 - y0, x1 - x0), dtype=np.uint8)
    for patch, (left, top, right, bottom) in zip(patches, boxes, strict=True):
        pixels[top - y0 : bottom - y0, left - x0 : right - x0] |= patch.pixels
    return Patch(int(x0), int(y0), pixels)


def measure_field(patch: Patch) -> NDArray[np.int8]:
    """Compute the squeeze field of a mask over its box, as ingest does."""
    box_xyxy = np.array(patch.box_xyxy, dtype=np.float32)
    return compute_patch_field(patch.pixels, (patch.x, patch.y), box_xyxy, side=FIELD_SIDE)


def _find_taps(start: int, stop: int, size: int, new_size: int) -> tuple[int, Taps]:
    """Find the taps of the new pixels that may lie in a span; return the first one, too."""
    scale = size / new_size
    first = max(0, math.floor((start - 0.5) / scale - 0.5))
    last = min(new_size, math.ceil((stop + 0.5) / scale - 0.5) + 1)
    x = (np.arange(first, last) + 0.5) * scale - 0.5
    # Beyond the outermost pixels an image goes on as they are.
    x = np.minimum(np.maximum(x, 0.0), size - 1.0)
    left = np.floor(x)
    return first, Taps(left.astype(np.int64), x - left)
