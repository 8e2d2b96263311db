"""Random subsampling that is the same on every device, run, resume and number of workers.

There is no generator state: each draw is an integer hash of (the sample's seed, the purpose, the
candidate), so nothing depends on the rest of the batch. Everything has a fixed shape, so a GPU
never has to tell the host how many candidates there are.

N images, C candidates, S slots
"""

from typing import NamedTuple

import torch
from torch import Tensor

ANCHORS = 1
"""Purpose of a draw: which anchors are trained."""
ROIS = 2
"""Purpose of a draw: which RoIs are trained."""
POINTS = 3
"""Purpose of a draw: at which points a mask is trained."""

_MASK_32 = 0xFFFFFFFF


class Subsample(NamedTuple):
    """A subsample of the candidates of each image, positives first."""

    candidate: Tensor
    """(N, S) int64: the candidate in each slot; any candidate where the slot is empty."""
    positive: Tensor
    """(N, S) bool."""
    valid: Tensor
    """(N, S) bool: whether the slot holds a candidate."""


def _mix(x: Tensor) -> Tensor:
    """Map 32-bit integers, stored in int64, one-to-one to 32-bit integers.

    Xor-shift and multiply rounds as in common integer hashes. The multipliers stay below 2^31, so
    no product overflows int64: devices may differ only in how they overflow.
    """
    for multiplier in (0x7FEB352D, 0x21F0AAAD, 0x31848BAB):
        x = x ^ (x >> 16)
        x = (x * multiplier) & _MASK_32
        x = x ^ (x >> 15)
    return x


def draw_keys(seed: Tensor, index: Tensor, *, purpose: int) -> Tensor:
    """Draw int64 keys (N, C) that no two candidates of an image share.

    Args:
        seed: (N,) int64.
        index: (C,) or (N, C) int64 in 0..2^31-1, unique for each candidate.
        purpose: separates the draws of one sample.
    """
    hashed = _hash(seed, index, purpose=purpose)
    # The index is the low half, so equal hashes do not leave topk a tie to break in its own way.
    return ((hashed >> 1) << 31) | index


def draw_uniforms(seed: Tensor, index: Tensor, *, purpose: int) -> Tensor:
    """Draw float32 numbers (N, C) in [0, 1).

    Args:
        seed: (N,) int64.
        index: (C,) or (N, C) int64 in 0..2^31-1, unique for each number.
        purpose: separates the draws of one sample.
    """
    # A float32 holds 24 bits without rounding, so no number is rounded up to 1.
    return (_hash(seed, index, purpose=purpose) >> 8).float() * 2.0**-24


def _hash(seed: Tensor, index: Tensor, *, purpose: int) -> Tensor:
    """Mix seed (N,), purpose and index into 32 random bits (N, C), in int64."""
    low = _mix((seed & _MASK_32) ^ purpose)
    base = _mix(((seed >> 32) & _MASK_32) ^ low)
    return _mix(_mix(index & _MASK_32) ^ base[:, None])


def subsample(
    positive: Tensor, negative: Tensor, keys: Tensor, *, num_slots: int, max_positive: int
) -> Subsample:
    """Choose at most `max_positive` positives and fill up with negatives, without replacement.

    Args:
        positive: (N, C) bool.
        negative: (N, C) bool, never true together with `positive`.
        keys: (N, C) int64 from `draw_keys`; the largest win.
        num_slots: S, at most C.
        max_positive: at most S.
    """
    lowest = torch.full_like(keys, -1)
    best = torch.where(positive, keys, lowest).topk(max_positive, dim=1).indices
    rest = torch.where(negative, keys, lowest).topk(num_slots, dim=1).indices
    num_positive = positive.sum(1, keepdim=True).clamp(max=max_positive)
    num_negative = negative.sum(1, keepdim=True)
    slot = torch.arange(num_slots, device=keys.device)[None, :]
    is_positive = slot < num_positive
    nth_negative = (slot - num_positive).clamp(min=0)
    is_negative = ~is_positive & (nth_negative < num_negative)
    of_best = best.gather(1, slot.clamp(max=max_positive - 1).expand(len(keys), -1))
    index = torch.where(is_positive, of_best, rest.gather(1, nth_negative))
    return Subsample(index, is_positive, is_positive | is_negative)
