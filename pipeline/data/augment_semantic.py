"""Image and label map transforms of semantic models: resize, crop, flip.

The paper resizes an image by a factor and crops a square from the result. Here the part of the
image that becomes the square is cropped first and resized then, so a frame of 2048 x 1024 costs
what its crop costs; only the outermost pixels of the crop miss the neighbors outside it.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.data.augment import (
    ResizeFlip,
    draw_flip,
    resize_and_flip,
    resize_and_flip_labels,
)
from pipeline.data.photo import Pixels
from pipeline.data.seeds import hash_ints, uniform
from pipeline.recipe import DataConfig

Plane = NDArray[np.uint8]

# Purpose of a draw; part of its hash. augment.py has others.
_SCALE, _ROW, _COLUMN = 3, 4, 5


class Crop(NamedTuple):
    """The part of an image that a sample trains, and its transform."""

    rows: slice
    columns: slice
    transform: ResizeFlip
    """Its output is at most as large as the crop size of the recipe."""
    zoom: float
    """Side of the resized image over that of the stored one."""


def draw_crop(size_hw: tuple[int, int], data: DataConfig, *, sample_seed: int) -> Crop:
    """Draw the scale, the position and the flip of a sample.

    Args:
        size_hw: size of the stored image.
        data: the choices.
        sample_seed: from seeds.sample_seeds.
    """
    low, high = data.scale_range
    scale = low + (high - low) * _draw_uniform(sample_seed, _SCALE)
    # Whole pixels of the image become whole pixels of the crop, so the scale is rounded a little.
    side = max(1, round(data.crop_px / scale))
    zoom = data.crop_px / side
    rows, columns = (
        _place_span(length, side, at=_draw_uniform(sample_seed, purpose))
        for length, purpose in zip(size_hw, (_ROW, _COLUMN), strict=True)
    )
    height_px, width_px = (
        max(1, round((span.stop - span.start) * zoom)) for span in (rows, columns)
    )
    flipped = draw_flip(data, sample_seed=sample_seed)
    return Crop(rows, columns, ResizeFlip(height_px, width_px, flipped), zoom)


def get_test_transform(size_hw: tuple[int, int], data: DataConfig) -> ResizeFlip:
    """Return the fixed transform of evaluation and inference: the image's size, by default."""
    return ResizeFlip(*(data.test_size_hw or size_hw), flipped=False)


def crop_image(pixels: Pixels, crop: Crop) -> Pixels:
    """Crop, resize and flip an image (H, W, 3), bilinear with antialiasing."""
    return resize_and_flip(pixels[crop.rows, crop.columns], crop.transform)


def crop_plane(plane: Plane, crop: Crop) -> Plane:
    """Crop, resize and flip a label map (H, W), nearest neighbor."""
    return resize_and_flip_labels(plane[crop.rows, crop.columns], crop.transform)


def _place_span(length: int, side: int, *, at: float) -> slice:
    """Place a span of `side` pixels, or the whole length if it is shorter."""
    start = int(at * (max(0, length - side) + 1))
    return slice(start, start + min(length, side))


def _draw_uniform(sample_seed: int, purpose: int) -> float:
    return float(uniform(hash_ints(sample_seed, purpose))[0])
