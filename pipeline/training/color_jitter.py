"""Change the colors of a batch on the device where it is trained, by factors drawn before.

The factors come with the batch (pipeline/data/augment.py: drawn_colors), so what a sample looks
like hangs on its seed alone: neither on the device nor on the images beside it. In the order of
torchvision's ColorJitter, which is fixed here: brightness, contrast, saturation, hue.

N images, H, W padded size
"""

import math
from dataclasses import replace

import torch
from kornia.enhance import (
    adjust_brightness_accumulative,
    adjust_hue,
    adjust_saturation_with_gray_subtraction,
)
from torch import Tensor

from bsm.backbone import inside_images
from pipeline.data.batch import Batch


def recolored(batch: Batch) -> Batch:
    """Change the images of a batch as its colors say; without colors it stays as it is."""
    if batch.colors is None:
        return batch
    images = change_colors(batch.images, batch.image_sizes_hw, batch.colors)
    return replace(batch, images=images)


@torch.no_grad()
def change_colors(images: Tensor, image_sizes_hw: Tensor, colors: Tensor) -> Tensor:
    """Change colors of images.

    Args:
        images: (N, 3, H, W) uint8 RGB.
        image_sizes_hw: (N, 2) sizes without padding.
        colors: (N, 4) factors of brightness, contrast and saturation, and the turn of the hue as a
            share of the circle.

    Returns:
        (N, 3, H, W) uint8; padding stays 0.
    """
    brightness, contrast, saturation, turn = colors.unbind(1)
    inside = inside_images(image_sizes_hw, (images.shape[-2], images.shape[-1]))[:, None]
    pixels = adjust_brightness_accumulative(images.float() / 255, brightness)
    pixels = _adjust_contrast(pixels, contrast, inside=inside)
    pixels = adjust_saturation_with_gray_subtraction(pixels, saturation)
    pixels = adjust_hue(pixels, turn * (2 * math.pi))
    return ((pixels * 255).round() * inside).to(torch.uint8)


def _adjust_contrast(pixels: Tensor, factor: Tensor, *, inside: Tensor) -> Tensor:
    """Scale distances from the image's mean brightness.

    kornia's takes the mean of the padding too, which hangs on the images beside this one.
    """
    count = inside.sum((1, 2, 3)) * pixels.shape[1]
    mean = ((pixels * inside).sum((1, 2, 3)) / count).view(-1, 1, 1, 1)
    scaled: Tensor = mean + factor.view(-1, 1, 1, 1) * (pixels - mean)
    return scaled.clamp(0, 1)
