"""Damage the photos of a batch, on the device that trains it.

Each photo is handled alone and without its padding, so a sample's pixels do not depend on the other
images of its batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.data.photo_damage import PhotoDamage

_BLUR_KERNEL = 13
"""Three times the largest sigma on either side."""

_HIDDEN = 128


@torch.no_grad()
def damage_photos(images: Tensor, damages: Sequence[PhotoDamage]) -> Tensor:
    """Turn photos gray, blur and compress them, and hide rectangles.

    Args:
        images: (N, 3, H, W) uint8 RGB.
        damages: N draws.

    Returns:
        (N, 3, H, W) uint8; padding stays as it is.
    """
    damaged = images.clone()
    for image, damage in zip(damaged, damages, strict=True):
        height, width = damage.size_hw
        photo = image[:, :height, :width]
        if damage.gray or damage.blur_sigma_px or damage.jpeg_quality:
            photo.copy_(_degrade(photo, damage))
        if damage.cutout_xyxy is not None:
            x0, y0, x1, y1 = damage.cutout_xyxy
            photo[:, y0:y1, x0:x1] = _HIDDEN
    return damaged


def _degrade(photo: Tensor, damage: PhotoDamage) -> Tensor:
    """Turn a photo (3, h, w) gray, blur it and compress it."""
    # Most recipes damage nothing, and kornia takes a second to import.
    from kornia.color import rgb_to_grayscale  # noqa: PLC0415
    from kornia.enhance import jpeg_codec_differentiable  # noqa: PLC0415
    from kornia.filters import gaussian_blur2d  # noqa: PLC0415

    pixels = photo[None].float() / 255
    if damage.gray:
        pixels = rgb_to_grayscale(pixels).expand(-1, 3, -1, -1)
    if damage.blur_sigma_px:
        # kornia fills a kernel from numbers on the device, without a wait.
        sigma = (damage.blur_sigma_px, damage.blur_sigma_px)
        pixels = gaussian_blur2d(pixels, _BLUR_KERNEL, sigma, border_type="replicate")
    if damage.jpeg_quality:
        # Filled on the device: a copy from the host would wait for it.
        quality = pixels.new_full((1,), damage.jpeg_quality)
        pixels = jpeg_codec_differentiable(pixels, quality)
    return (pixels[0].clamp(0, 1) * 255).round().to(torch.uint8)
