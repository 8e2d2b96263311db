"""Draw how the photos of samples are damaged; pipeline/training/damage_photos.py does it.

The draws of a sample are a function of its seed alone (pipeline/data/seeds.py). They stay on the
host, so the device is never asked which photos get what.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.data.mask_patches import WindowXyxy
from pipeline.data.seeds import hash_ints, uniform
from pipeline.recipe import RobustConfig

# Purpose of a draw; part of its hash. augment.py has others.
_GRAY, _BLUR, _JPEG, _CUTOUT = 31, 32, 33, 34
_SIGMA, _QUALITY, _AREA, _SHAPE, _COLUMN, _ROW = 35, 36, 37, 38, 39, 40

_SIGMA_PX, _QUALITIES, _AREAS = (0.1, 2.0), (20.0, 90.0), (0.02, 0.15)
_LONGEST_SHAPE = 3.0
"""Limit of a rectangle's height over its width, and of its width over its height."""


class PhotoDamage(NamedTuple):
    """The damage of a photo, in this order."""

    size_hw: tuple[int, int]
    """Of the photo without padding."""
    gray: bool
    blur_sigma_px: float
    """0 does not blur."""
    jpeg_quality: float
    """0 does not compress."""
    cutout_xyxy: WindowXyxy | None


def draw_damage(
    seeds: NDArray[np.int64], sizes_hw: Sequence[tuple[int, int]], robust: RobustConfig
) -> tuple[PhotoDamage, ...] | None:
    """Draw the damage of samples.

    Args:
        seeds: (N,) from seeds.sample_seeds.
        sizes_hw: of the photos as they are trained.
        robust: the shares.

    Returns:
        N draws; None if nothing is on.
    """
    if not robust.is_on:
        return None
    return tuple(
        _draw_one(int(seed), size_hw, robust) for seed, size_hw in zip(seeds, sizes_hw, strict=True)
    )


def _draw_one(seed: int, size_hw: tuple[int, int], robust: RobustConfig) -> PhotoDamage:
    blurs = _draw(seed, _BLUR) < robust.blur
    compresses = _draw(seed, _JPEG) < robust.jpeg
    hides = _draw(seed, _CUTOUT) < robust.cutout
    return PhotoDamage(
        size_hw=size_hw,
        gray=_draw(seed, _GRAY) < robust.gray,
        blur_sigma_px=_draw(seed, _SIGMA, _SIGMA_PX) if blurs else 0.0,
        jpeg_quality=_draw(seed, _QUALITY, _QUALITIES) if compresses else 0.0,
        cutout_xyxy=_draw_rectangle(seed, size_hw) if hides else None,
    )


def _draw_rectangle(seed: int, size_hw: tuple[int, int]) -> WindowXyxy:
    height, width = size_hw
    area = height * width * _draw(seed, _AREA, _AREAS)
    limit = math.log(_LONGEST_SHAPE)
    shape = math.exp(_draw(seed, _SHAPE, (-limit, limit)))
    tall = min(height, max(1, round(math.sqrt(area * shape))))
    wide = min(width, max(1, round(math.sqrt(area / shape))))
    x0 = int(_draw(seed, _COLUMN) * (width - wide + 1))
    y0 = int(_draw(seed, _ROW) * (height - tall + 1))
    return x0, y0, x0 + wide, y0 + tall


def _draw(seed: int, purpose: int, limits: tuple[float, float] = (0.0, 1.0)) -> float:
    low, high = limits
    return low + (high - low) * float(uniform(hash_ints(seed, purpose))[0])
