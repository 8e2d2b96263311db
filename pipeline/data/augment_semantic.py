"""Image and label map transforms of semantic models: resize, crop, flip.

The paper resizes an image by a factor and crops a square from the result. Here the part of the
image that becomes the square is cropped first (pipeline/data/augment.py: draw_square), so a frame
of 2048 x 1024 costs what its crop costs.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.data.augment import (
    ResizeFlip,
    draw_scale,
    draw_square,
    resize_and_flip,
    resize_and_flip_labels,
)
from pipeline.data.photo import Pixels
from pipeline.recipe import DataConfig

Plane = NDArray[np.uint8]


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
    scale = draw_scale(data.scale_range, sample_seed=sample_seed)
    transform, zoom = draw_square(size_hw, scale, data, sample_seed=sample_seed)
    x0, y0, x1, y1 = transform.window_xyxy or (0, 0, *size_hw[::-1])
    whole = transform._replace(window_xyxy=None)
    return Crop(slice(y0, y1), slice(x0, x1), whole, zoom)


def get_test_transform(size_hw: tuple[int, int], data: DataConfig) -> ResizeFlip:
    """Return the fixed transform of evaluation and inference: the image's size, by default."""
    return ResizeFlip(*(data.test_size_hw or size_hw), flipped=False)


def crop_image(pixels: Pixels, crop: Crop) -> Pixels:
    """Crop, resize and flip an image (H, W, 3), bilinear with antialiasing."""
    return resize_and_flip(pixels[crop.rows, crop.columns], crop.transform)


def crop_plane(plane: Plane, crop: Crop) -> Plane:
    """Crop, resize and flip a label map (H, W), nearest neighbor."""
    return resize_and_flip_labels(plane[crop.rows, crop.columns], crop.transform)
