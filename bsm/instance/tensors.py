"""Dense tensors that an instance model takes and returns.

Every image has the same number of slots, padded entries for objects or RoIs, and a `valid` mask
tells which of them are filled. So every tensor has a fixed shape, and a training step on a GPU
never asks the host how many objects there are.

N images, T target slots, S side of the squeeze field, D detection slots, M side of a mask,
H, W padded image size
"""

from typing import NamedTuple

import torch
from torch import Tensor


def can_count(values: Tensor) -> bool:
    """Tell whether a result's shape may depend on values: on a CPU, but not in a compiled graph.

    A GPU would stall until the host has read them, and torch.compile would split its graph.
    """
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


class Targets(NamedTuple):
    """Ground truth of N images, in the pixels of the (resized, flipped, padded) input.

    Crowds are left out: no loss uses them.
    """

    boxes_xyxy: Tensor
    """(N, T, 4) float32, absolute pixels, half-open; zeros where not valid."""
    category_index: Tensor
    """(N, T) int64 in 0..K-1; 0 where not valid."""
    valid: Tensor
    """(N, T) bool: whether the slot holds an object. T may be 0."""
    squeeze_field: Tensor
    """(N, T, S, S) int8, see bsm/field.py."""
    field_frame_xyxy: Tensor
    """(N, T, 4) float32: frame of the field in the input; x0 > x1 where it is mirrored."""
    sample_seed: Tensor
    """(N,) int64, from (seed, epoch, image id): every random choice in the model comes from it."""
    masks: Tensor | None = None
    """(N, T, h, w) uint8 0/1, only for the "roi" target source. Their size need not be the input's:
    masks as stored, without a resize, give the most exact targets."""
    mask_scale_xy: Tensor | None = None
    """(N, T, 2) float32: pixels of the masks per pixel of the input; None for masks of its size."""


class Detections(NamedTuple):
    """Detections in N images, best first, in the pixels of the input."""

    boxes_xyxy: Tensor
    """(N, D, 4) float32."""
    scores: Tensor
    """(N, D) float32."""
    category_index: Tensor
    """(N, D) int64."""
    valid: Tensor
    """(N, D) bool."""
    mask_probs: Tensor
    """(N, D, M, M) float32 in 0..1, of the detection's own category, over its box."""
