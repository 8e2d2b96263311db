"""From a stored image and its label maps to what a semantic model trains on: resize, crop, flip.

The paper resizes an image by a factor and cuts a square out of the result. Here the part of the
image that becomes the square is cut out first and resized then, so a frame of 2048 x 1024 costs
what its crop costs; the outermost pixels of the crop do not see the neighbors that are cut off.
"""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.data.augment import Geometry, Pixels, is_flipped, laid
from pipeline.data.seeds import mixed, uniform
from pipeline.recipe import DataConfig

Plane = NDArray[np.uint8]

# What a draw is for; part of its hash. pipeline/data/augment.py has others.
_SCALE, _ROW, _COLUMN = 3, 4, 5


class Window(NamedTuple):
    """The part of an image that a sample trains, and how it is laid into the input."""

    rows: slice
    columns: slice
    geometry: Geometry
    """Its size in the input is at most that of the crop."""
    zoom: float
    """Side of the resized image over that of the stored one."""


def train_window(size_hw: tuple[int, int], data: DataConfig, *, sample_seed: int) -> Window:
    """Draw the factor, the place and the flip of a sample.

    Args:
        size_hw: size of the image as stored.
        data: what to draw from.
        sample_seed: from seeds.sample_seeds.
    """
    low, high = data.scale_range
    scale = low + (high - low) * _drawn(sample_seed, _SCALE)
    # Whole pixels of the image become whole pixels of the crop, so the factor gives way a little.
    side = max(1, round(data.crop_px / scale))
    zoom = data.crop_px / side
    rows, columns = (
        _span(length, side, at=_drawn(sample_seed, purpose))
        for length, purpose in zip(size_hw, (_ROW, _COLUMN), strict=True)
    )
    height_px, width_px = (
        max(1, round((span.stop - span.start) * zoom)) for span in (rows, columns)
    )
    flipped = is_flipped(data, sample_seed=sample_seed)
    return Window(rows, columns, Geometry(height_px, width_px, flipped), zoom)


def evaluation_geometry(size_hw: tuple[int, int], data: DataConfig) -> Geometry:
    """Give the one geometry of evaluation and inference: the image's own size, unless said."""
    return Geometry(*(data.test_size_hw or size_hw), flipped=False)


def cut(pixels: Pixels, window: Window) -> Pixels:
    """Cut (H, W, 3) pixels, resize them smoothly and flip them."""
    return laid(pixels[window.rows, window.columns], window.geometry)


def cut_plane(plane: Plane, window: Window) -> Plane:
    """Cut a label map (H, W), resize it to the nearest pixel and flip it."""
    geometry = window.geometry
    part = plane[window.rows, window.columns]
    size_wh = (geometry.width_px, geometry.height_px)
    if part.shape != size_wh[::-1]:
        resized = cv2.resize(part, size_wh, interpolation=cv2.INTER_NEAREST_EXACT)
        part = np.asarray(resized, dtype=np.uint8)
    return part[:, ::-1] if geometry.flipped else part


def _span(length: int, side: int, *, at: float) -> slice:
    """Place `side` pixels, or all there are, within a length."""
    start = int(at * (max(0, length - side) + 1))
    return slice(start, start + min(length, side))


def _drawn(sample_seed: int, purpose: int) -> float:
    return float(uniform(mixed(sample_seed, purpose))[0])
