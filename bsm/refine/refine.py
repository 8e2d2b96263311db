"""Refine the masks of a photo with a trained refiner.

R masks, H, W image size, S side of a crop
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from bsm.refine.crops import Window, boxes_to_crops, crop, cut_window, paste_window, round_crops
from bsm.refine.refiner import Refiner, fold_for_inference

_CELLS_PER_CHUNK = 2**18
"""Cells of crops that are refined at a time: 16 of 128 x 128 (about 100 MB)."""


class Refined(NamedTuple):
    """Refined masks of a photo."""

    masks: Tensor
    """(R, H, W) bool."""
    confidence: Tensor
    """(R,) float32 in 0..1: mean |2 p - 1| along the refined outline; 0 for an empty mask."""


@torch.inference_mode()
def refine_masks(
    model: Refiner, image: Shaped[Tensor, "3 H W"], masks: Shaped[Tensor, "R H W"]
) -> Refined:
    """Refine masks of one photo; an empty mask stays empty, and one that would vanish stays.

    Args:
        model: in evaluation mode, on the device of the image.
        image: RGB, 0 to 255; uint8 is the fastest.
        masks: 0/1 or bool.
    """
    model = fold_for_inference(model)
    refined = masks.bool().clone()
    confidence = torch.zeros(len(masks), device=image.device)
    boxes = _find_boxes(refined)
    windows = round_crops(boxes_to_crops(boxes, scale=model.config.context))
    is_empty = (boxes[:, 2] <= boxes[:, 0]).tolist()
    for side, rows in _plan_chunks(windows, is_empty, sides=model.config.crop_px):
        here = [windows[row] for row in rows]
        cells = _cut(image, refined, rows, here, side=side)
        logits = model.predict(cells[:, :3], (cells[:, 3] >= 127.5).float())
        confidence[rows] = _measure_confidence(logits)
        for one, row in enumerate(rows):
            paste_window(logits[one].float(), refined[row], here[one])
    return Refined(refined, confidence)


def choose_side(extent_px: float, sides: tuple[int, ...]) -> int:
    """Choose the smallest side of a crop that keeps all pixels, or the largest there is."""
    return next((side for side in sides if side >= extent_px), sides[-1])


def _plan_chunks(
    windows: Sequence[Window], is_empty: Sequence[bool], *, sides: tuple[int, ...]
) -> Iterator[tuple[int, list[int]]]:
    """Yield the side and the rows of masks that are refined together."""
    for side in sides:
        rows = [
            row
            for row, window in enumerate(windows)
            if not is_empty[row] and choose_side(window.extent, sides) == side
        ]
        step = max(_CELLS_PER_CHUNK // side**2, 1)
        for start in range(0, len(rows), step):
            yield side, rows[start : start + step]


def _cut(
    image: Tensor, masks: Tensor, rows: list[int], windows: list[Window], *, side: int
) -> Float[Tensor, "r 4 S S"]:
    """Crop the photo and the mask of each row, 0 to 255."""
    if image.device.type == "cpu":
        cut = [
            cut_window(image, masks[row], window, side=side)
            for row, window in zip(rows, windows, strict=True)
        ]
        return torch.stack(cut)
    corners = [[w.left, w.top, w.left + w.extent, w.top + w.extent] for w in windows]
    crops = torch.tensor(corners, device=image.device, dtype=torch.float32)
    index = torch.arange(len(rows), device=image.device)
    pixels = crop(image[None].float(), crops, torch.zeros_like(index), side=side)
    given = [
        crop(masks[row][None, None].float(), crops[one : one + 1], index[:1], side=side)
        for one, row in enumerate(rows)
    ]
    return torch.cat([pixels, torch.cat(given) * 255], dim=1)


def _find_boxes(masks: Tensor) -> Float[Tensor, "R 4"]:
    """Find the boxes of masks (R, H, W); an empty one has no width."""
    if not len(masks):
        return torch.zeros(0, 4, device=masks.device)
    # The maximum of bytes takes a sixth of the time of `any` on a CPU.
    cells = masks.view(torch.uint8)
    rows, columns = cells.amax(2).float(), cells.amax(1).float()
    height, width = masks.shape[1:]
    right, bottom = width - columns.flip(1).argmax(1), height - rows.flip(1).argmax(1)
    filled = rows.amax(1) > 0
    boxes = torch.stack([columns.argmax(1), rows.argmax(1), right, bottom], dim=1)
    return boxes.float() * filled[:, None]


def _measure_confidence(logits: Float[Tensor, "r S S"]) -> Float[Tensor, " r"]:
    """Average the certainty of the cells within 2 of which both sides of the outline are."""
    inside = logits > 0
    near = (_dilate(inside) & _dilate(~inside)).flatten(1)
    # |2 p - 1|
    certainty = (logits / 2).tanh().abs().flatten(1) * near
    return certainty.sum(1) / near.sum(1).clamp(min=1)


def _dilate(cells: Tensor) -> Tensor:
    """Dilate cells (r, S, S) by 2 to every side; a pooling of floats takes ten times as long."""
    for dim in (1, 2):
        side, grown = cells.shape[dim], cells.clone()
        for shift in (1, 2):
            grown.narrow(dim, 0, side - shift).logical_or_(cells.narrow(dim, shift, side - shift))
            grown.narrow(dim, shift, side - shift).logical_or_(cells.narrow(dim, 0, side - shift))
        cells = grown
    return cells
