"""Refine the masks of a photo, given and returned as RLE.

Dense masks exist for a few objects at a time, under a byte budget: a hundred masks of 12 megapixels
would not fit in memory.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from pycocotools import mask as mask_api

from bsm.refine.refine import refine_masks
from bsm.refine.refiner import Refiner
from pipeline.data.photo import Pixels
from pipeline.evaluation.encode_masks import encode_masks
from pipeline.evaluation.rle import Rle

MAX_CHANGE = 0.5
"""Default of the largest change of a mask; a larger one is more likely another object."""

MASK_BYTES = 64 * 2**20
"""Default memory limit in bytes for dense masks."""


class RefinedMask(NamedTuple):
    """A refined mask."""

    rle: Rle
    change: float
    """1 - IoU of the refiner's mask with the given one."""
    confidence: float
    """0 to 1, see `bsm.refine.refine.Refined`."""
    kept: bool
    """Whether the given mask is kept: the change is too large."""


def refine_rles(
    model: Refiner,
    pixels: Pixels,
    rles: Sequence[Rle],
    *,
    max_change: float = MAX_CHANGE,
    mask_bytes: int = MASK_BYTES,
) -> list[RefinedMask]:
    """Refine masks of one photo.

    Args:
        model: in evaluation mode.
        pixels: (H, W, 3) RGB.
        rles: masks of the photo's size.
        max_change: masks that would change more are kept.
        mask_bytes: largest number of bytes of dense masks at a time, at least one mask.
    """
    device = next(model.parameters()).device
    image = torch.from_numpy(pixels).to(device).permute(2, 0, 1).contiguous()
    height, width = pixels.shape[:2]
    step = max(1, mask_bytes // (height * width))
    found: list[RefinedMask] = []
    for start in range(0, len(rles), step):
        part = list(rles[start : start + step])
        decoded = np.ascontiguousarray(mask_api.decode(part).transpose(2, 0, 1))
        given = torch.from_numpy(decoded).to(device).bool()
        refined = refine_masks(model, image, given)
        # In float64, which holds all counts of pixels.
        common = (given & refined.masks).flatten(1).sum(1).double()
        union = (given | refined.masks).flatten(1).sum(1).double()
        changes = (1 - common / union.clamp(min=1)).where(union > 0, torch.zeros_like(union))
        for rle, counts, change, confidence in zip(
            part,
            encode_masks(refined.masks),
            changes.tolist(),
            refined.confidence.tolist(),
            strict=True,
        ):
            kept = change > max_change
            mask = rle if kept else {"size": [height, width], "counts": counts}
            found.append(RefinedMask(mask, change, confidence, kept))
    return found


class RefinedSegmentations(NamedTuple):
    """Refined masks as in JSON, and the number that were kept."""

    segmentations: list[dict[str, Any]]
    kept: int


def refine_segmentations(
    model: Refiner,
    pixels: Pixels,
    segmentations: Sequence[Mapping[str, Any]],
    *,
    mask_bytes: int = MASK_BYTES,
) -> RefinedSegmentations:
    """Refine masks of one photo whose compressed counts are text; see `refine_rles`."""
    rles = [{"size": each["size"], "counts": each["counts"].encode()} for each in segmentations]
    refined = refine_rles(model, pixels, rles, mask_bytes=mask_bytes)
    return RefinedSegmentations(
        [to_segmentation(mask.rle) for mask in refined], sum(mask.kept for mask in refined)
    )


def to_segmentation(rle: Rle) -> dict[str, Any]:
    """Convert compressed RLE to what JSON holds: counts become text."""
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}
