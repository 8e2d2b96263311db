"""Refine the masks of a photo with a trained refiner.

R masks, H, W image size, S side of a crop
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Integer, Shaped
from torch import Tensor
from torch.nn import functional as F

from bsm.refine.crops import boxes_to_crops, crop
from bsm.refine.refiner import Refiner

_CELLS_PER_CHUNK = 2**18
"""Cells of crops that are refined at a time: 16 of 128 x 128 (about 100 MB)."""
_PIXELS_PER_CHUNK = 2**24
"""Pixels of whole masks that are converted at a time (64 MiB)."""


class Refined(NamedTuple):
    """Refined masks of a photo."""

    masks: Tensor
    """(R, H, W) bool."""
    confidence: Tensor
    """(R,) float32 in 0..1: mean |2 p - 1| along the refined outline; 0 for an empty mask."""


@torch.inference_mode()
def refine_masks(
    model: Refiner, image: Float[Tensor, "3 H W"], masks: Shaped[Tensor, "R H W"]
) -> Refined:
    """Refine masks of one photo; an empty mask stays empty, and one that would vanish stays.

    Args:
        model: in evaluation mode, on the device of the image.
        image: RGB, 0 to 255.
        masks: 0/1 or bool.
    """
    refined = masks.bool().clone()
    confidence = torch.zeros(len(masks), device=image.device)
    crops = boxes_to_crops(_find_boxes(refined), scale=model.config.context)
    plane = image[None].float()
    for side, index in _plan_chunks(crops, refined, sides=model.config.crop_px):
        here = crops[index]
        pixels = crop(plane, here, torch.zeros_like(index), side=side)
        given = _crop_masks(refined, here, index, side=side)
        logits = model.predict(pixels, (given >= 0.5).float())
        confidence[index] = _measure_confidence(logits)
        for one, row in enumerate(index.tolist()):
            pasted = _paste(logits[one], here[one], size_hw=refined.shape[1:])
            if pasted.any():
                refined[row] = pasted
    return Refined(refined, confidence)


def choose_side(extent_px: float, sides: tuple[int, ...]) -> int:
    """Choose the smallest side of a crop that keeps all pixels, or the largest there is."""
    return next((side for side in sides if side >= extent_px), sides[-1])


def _plan_chunks(
    crops: Tensor, masks: Tensor, *, sides: tuple[int, ...]
) -> Iterator[tuple[int, Integer[Tensor, " r"]]]:
    """Yield the side and the indices of masks that are refined together."""
    extents = torch.where(masks.flatten(1).any(1), crops[:, 2] - crops[:, 0], -1.0).tolist()
    pixels = max(masks.shape[1] * masks.shape[2], 1)
    for side in sides:
        index = [
            row
            for row, extent in enumerate(extents)
            if extent > 0 and choose_side(extent, sides) == side
        ]
        step = max(min(_CELLS_PER_CHUNK // side**2, _PIXELS_PER_CHUNK // pixels), 1)
        for start in range(0, len(index), step):
            yield side, torch.tensor(index[start : start + step], device=crops.device)


def _crop_masks(masks: Tensor, crops: Tensor, index: Tensor, *, side: int) -> Tensor:
    """Crop masks (r, S, S) of whole ones (R, H, W)."""
    if masks.device.type != "cpu":
        rows = torch.arange(len(index), device=masks.device)
        return crop(masks[index, None].float(), crops, rows, side=side)[:, 0]
    # A float copy of every whole mask would take longer than the network.
    cut = []
    for row, (x0, y0, x1, y1) in zip(index.tolist(), crops.tolist(), strict=True):
        left, top = max(int(x0) - 2, 0), max(int(y0) - 2, 0)
        part = masks[row, top : max(int(y1) + 3, 1), left : max(int(x1) + 3, 1)]
        here = torch.tensor([[x0 - left, y0 - top, x1 - left, y1 - top]])
        cut.append(crop(part[None, None].float(), here, torch.zeros(1).long(), side=side)[:, 0])
    return torch.cat(cut)


def _find_boxes(masks: Tensor) -> Float[Tensor, "R 4"]:
    rows, columns = masks.any(2).float(), masks.any(1).float()
    if not len(masks):
        return rows.new_zeros(0, 4)
    right = columns.shape[1] - columns.flip(1).argmax(1)
    bottom = rows.shape[1] - rows.flip(1).argmax(1)
    return torch.stack([columns.argmax(1), rows.argmax(1), right, bottom], dim=1).float()


def _measure_confidence(logits: Tensor) -> Tensor:
    """Average the certainty of the cells on either side of the outline."""
    inside = (logits > 0).float()[:, None]
    near = F.max_pool2d(inside, 5, stride=1, padding=2) + F.max_pool2d(
        -inside, 5, stride=1, padding=2
    )
    certainty = (2 * logits.sigmoid() - 1).abs()
    return (certainty * near[:, 0]).flatten(1).sum(1) / near.flatten(1).sum(1).clamp(min=1)


def _paste(
    logits: Float[Tensor, "S S"], crop_xyxy: Float[Tensor, " 4"], *, size_hw: torch.Size
) -> Tensor:
    """Paste a mask into an empty image, sampled at the centers of pixels."""
    height, width = size_hw
    x0, y0, x1, y1 = crop_xyxy.tolist()
    left, right = max(int(x0), 0), min(int(x1) + 1, width)
    top, bottom = max(int(y0), 0), min(int(y1) + 1, height)
    x = torch.arange(left, right, device=logits.device) + 0.5
    y = torch.arange(top, bottom, device=logits.device) + 0.5
    at_x, at_y = (x - x0) / (x1 - x0) * 2 - 1, (y - y0) / (y1 - y0) * 2 - 1
    grid = torch.stack(torch.meshgrid(at_x, at_y, indexing="xy"), dim=-1)
    # Beyond the crop nothing is known: its border is repeated for the pixels that it cuts.
    sampled = F.grid_sample(
        logits[None, None].float(), grid[None], padding_mode="border", align_corners=False
    )
    pasted = torch.zeros(height, width, dtype=torch.bool, device=logits.device)
    pasted[top:bottom, left:right] = sampled[0, 0] > 0
    return pasted
