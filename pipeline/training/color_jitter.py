"""Color jitter of a batch, on the device that trains it, and what else is done to its photos.

The factors come with the batch (pipeline/data/augment.py: draw_color_jitter), so the colors of a
sample depend on its seed alone, not on the device or on the other images of the batch. The order is
torchvision's ColorJitter with its shuffle left out: brightness, contrast, saturation, hue.

N images, H, W padded size
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from bsm.backbone import make_inside_mask
from pipeline.data.batch import Batch
from pipeline.training.damage_photos import damage_photos


def jitter_colors(batch: Batch) -> Batch:
    """Apply a batch's color factors to its images, then its damage, if it has any."""
    if batch.colors is None and batch.damage is None:
        return batch
    images = batch.images
    if batch.colors is not None:
        images = adjust_colors(images, batch.image_sizes_hw, batch.colors)
    if batch.damage is not None:
        images = damage_photos(images, batch.damage)
    return replace(batch, images=images)


@torch.no_grad()
def adjust_colors(images: Tensor, image_sizes_hw: Tensor, colors: Tensor) -> Tensor:
    """Adjust brightness, contrast, saturation and hue of each image.

    Args:
        images: (N, 3, H, W) uint8 RGB.
        image_sizes_hw: (N, 2) sizes without padding.
        colors: (N, 4) factors of brightness, contrast and saturation, and the hue shift as a
            fraction of the color circle.

    Returns:
        (N, 3, H, W) uint8; padding stays 0.
    """
    # Most recipes have no jitter, and kornia takes a second to import.
    from kornia.enhance import (  # noqa: PLC0415
        adjust_brightness_accumulative,
        adjust_hue,
        adjust_saturation_with_gray_subtraction,
    )

    brightness, contrast, saturation, hue = colors.unbind(1)
    inside = make_inside_mask(image_sizes_hw, (images.shape[-2], images.shape[-1]))[:, None]
    pixels = adjust_brightness_accumulative(images.float() / 255, brightness)
    pixels = _adjust_contrast(pixels, contrast, inside=inside)
    pixels = adjust_saturation_with_gray_subtraction(pixels, saturation)
    pixels = adjust_hue(pixels, hue * (2 * math.pi))
    return ((pixels * 255).round() * inside).to(torch.uint8)


def _adjust_contrast(pixels: Tensor, factor: Tensor, *, inside: Tensor) -> Tensor:
    """Scale the distance of each pixel from the image's mean.

    kornia's version includes the padding in the mean, which depends on the other images.
    """
    count = inside.sum((1, 2, 3)) * pixels.shape[1]
    mean = ((pixels * inside).sum((1, 2, 3)) / count).view(-1, 1, 1, 1)
    scaled: Tensor = mean + factor.view(-1, 1, 1, 1) * (pixels - mean)
    return scaled.clamp(0, 1)
