"""Paste masks from their boxes into images, in chunks or in strips.

A hundred masks of a 4000 x 3000 photo take 1.2 GB as bool and 16 GB while they are computed, so
they come in chunks that fit a byte budget; encode each chunk before asking for the next. On the CPU
they also come as strips of columns, from which run lengths are made without a whole image.

The mask is sampled at each pixel's center, bilinear, as in detectron2: pasting into boxes rounded
to whole pixels costs about half a point of mask AP (its compatibility notes).

D detections, d of them in a chunk, M side of a mask, H, W image size, w, h size of a strip
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

_THRESHOLD = 0.5  # detectron2
_BYTES_PER_PIXEL = 13  # grid (x, y) and sampled value in float32, and the bool
_STRIP_PIXELS = 2**17
"""Values of a strip stay in the processor's cache."""
_ROUNDING = 1e-4
"""Far more than two ways to sum up the same bilinear sample can differ."""


class Strip(NamedTuple):
    """Some columns of a pasted mask; everything around all of its strips is background."""

    left: int
    """First column in the image."""
    top: int
    """First row in the image."""
    columns: Bool[Tensor, "w h"]


def paste_masks(
    mask_probs: Float[Tensor, "D M M"],
    boxes_xyxy: Float[Tensor, "D 4"],
    *,
    size_hw: tuple[int, int],
    byte_budget: int,
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the masks at image size, in order, chunk by chunk.

    On the CPU a chunk is one mask, sampled only around its box.

    Args:
        mask_probs: over the boxes, 0 to 1.
        boxes_xyxy: in pixels of the image, not necessarily inside it.
        size_hw: of the image.
        byte_budget: most bytes that pasting may use, including the yielded chunk; a single mask is
            pasted even if it needs more.

    Yields:
        a slice of the detections, and their masks (d, H, W), bool.

    Raises:
        ValueError: byte_budget is not positive.
    """
    if byte_budget <= 0:
        raise ValueError(f"byte_budget {byte_budget}: must be positive. Try {2**28} (256 MiB).")
    height, width = size_hw
    on_cpu = mask_probs.device.type == "cpu"
    fitting = byte_budget // max(_BYTES_PER_PIXEL * height * width, 1)
    step = 1 if on_cpu else max(fitting, 1)
    return _paste_chunks(mask_probs, boxes_xyxy, size_hw=size_hw, step=step)


def _paste_chunks(
    mask_probs: Tensor, boxes_xyxy: Tensor, *, size_hw: tuple[int, int], step: int
) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, len(mask_probs), step):
        chunk = slice(start, min(start + step, len(mask_probs)))
        probs, boxes = mask_probs[chunk], boxes_xyxy[chunk]
        if probs.device.type == "cpu":
            yield chunk, _paste_from_strips(probs, boxes, size_hw=size_hw)
        else:
            rows, columns = (torch.arange(side, device=boxes.device) for side in size_hw)
            yield chunk, _paste(probs[:, None].float(), boxes.float(), rows, columns)


def paste_strips(
    mask_probs: Float[Tensor, "M M"], box_xyxy: Float[Tensor, " 4"], *, size_hw: tuple[int, int]
) -> Iterator[Strip]:
    """Yield the strips of one mask from left to right, equal to `paste_masks` pixel for pixel.

    Nearly all pixels are decided by two matrix products, which is how a bilinear sample of a whole
    grid is summed up fastest. Where that is too close to the threshold, the pixel is sampled.

    Args:
        mask_probs: over the box, 0 to 1, on the CPU.
        box_xyxy: in pixels of the image, not necessarily inside it.
        size_hw: of the image.
    """
    height, width = size_hw
    x0, y0, x1, y1 = box_xyxy.tolist()
    # A pixel center outside the box samples less than half of a probability.
    left, right = (min(max(round(x), 0), width) for x in (x0 - 1, x1 + 1))
    top, bottom = (min(max(round(y), 0), height) for y in (y0 - 1, y1 + 1))
    if left >= right or top >= bottom:
        return
    probs, box = mask_probs.float(), box_xyxy[None].float()
    x = _to_grid(torch.arange(left, right), box[:, 0::2])[0]
    y = _to_grid(torch.arange(top, bottom), box[:, 1::2])[0]
    across, down = _to_weights(x, len(probs)) @ probs.t(), _to_weights(y, len(probs)).t()
    step = max(_STRIP_PIXELS // len(y), 1)
    for start in range(0, len(x), step):
        values = across[start : start + step] @ down
        columns = values >= _THRESHOLD + _ROUNDING
        unsure = ((values >= _THRESHOLD - _ROUNDING) ^ columns).view(-1).numpy().nonzero()[0]
        at = torch.from_numpy(unsure)
        grid = torch.stack([x[start + at // len(y)], y[at % len(y)]], dim=-1)[None, None]
        sampled = F.grid_sample(probs[None, None], grid, align_corners=False)
        columns.view(-1)[at] = sampled[0, 0, 0] >= _THRESHOLD
        yield Strip(left + start, top, columns)


def _paste_from_strips(probs: Tensor, boxes: Tensor, *, size_hw: tuple[int, int]) -> Tensor:
    image = torch.zeros(1, *size_hw, dtype=torch.bool)
    for left, top, columns in paste_strips(probs[0], boxes[0], size_hw=size_hw):
        width, height = columns.shape
        image[0, top : top + height, left : left + width] = columns.t()
    return image


def _paste(probs: Tensor, boxes: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    x, y = _to_grid(columns, boxes[:, 0::2]), _to_grid(rows, boxes[:, 1::2])
    shape = (len(boxes), len(rows), len(columns))
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=-1)
    sampled = F.grid_sample(probs, grid, align_corners=False)
    del grid
    return sampled[:, 0] >= _THRESHOLD


def _to_grid(pixels: Tensor, sides: Tensor) -> Tensor:
    start, stop = sides[:, :1], sides[:, 1:]
    # A box without extent shows nothing: all pixels are outside of it, and 3 is far enough.
    extent = (stop - start).clamp(min=1e-6)
    return ((pixels + 0.5 - start) / extent * 2 - 1).clamp(-3, 3)


def _to_weights(grid: Tensor, side: int) -> Tensor:
    """Return how much each of `side` cells counts at each position of a grid, (positions, side)."""
    at = ((grid + 1) * side - 1) / 2
    return (1 - (at[:, None] - torch.arange(side)).abs()).clamp_(min=0)
