"""Random picks that are the same on every device, run, resume and number of workers.

A pick is no state of a generator but an integer hash of (the sample's seed, what it is for, which
candidate): nothing depends on what else is in the batch. Everything has a fixed shape, so a GPU
never has to tell the host how many candidates there were.

    N images, C candidates, S slots
"""

from typing import NamedTuple

import torch
from torch import Tensor

ANCHORS = 1
"""Purpose of a pick: which anchors carry loss."""
ROIS = 2
"""Purpose of a pick: which RoIs are trained."""
POINTS = 3
"""Purpose of a draw: where in a grid a mask is trained."""

_MASK_32 = 0xFFFFFFFF


class Slots(NamedTuple):
    """What was picked, positives first."""

    candidate: Tensor
    """(N, S) int64: the candidate in each slot; any candidate where the slot is empty."""
    positive: Tensor
    """(N, S) bool."""
    valid: Tensor
    """(N, S) bool: which slots hold a pick."""


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit integers that are held in int64.

    Xor-shift and multiply rounds as in common integer hashes. The multipliers stay below 2^31, so
    that no product leaves int64: overflow is the one thing about integers that devices could do
    differently.
    """
    for multiplier in (0x7FEB352D, 0x21F0AAAD, 0x31848BAB):
        x = x ^ (x >> 16)
        x = (x * multiplier) & _MASK_32
        x = x ^ (x >> 15)
    return x


def random_keys(seed: Tensor, index: Tensor, *, purpose: int) -> Tensor:
    """Random int64 keys (N, C) that no two candidates of an image share.

    Args:
        seed: (N,) int64.
        index: (C,) or (N, C) int64 in 0..2^31-1, different for different candidates.
        purpose: Separates the picks that one sample needs.
    """
    hashed = _hashed(seed, index, purpose=purpose)
    # The index is the low half, so equal hashes cannot make a tie for topk to break its own way.
    return ((hashed >> 1) << 31) | index


def random_uniforms(seed: Tensor, index: Tensor, *, purpose: int) -> Tensor:
    """Random float32 numbers (N, C) in 0..1, 1 excluded.

    Args:
        seed: (N,) int64.
        index: (C,) or (N, C) int64 in 0..2^31-1, different for different numbers.
        purpose: Separates the draws that one sample needs.
    """
    # 24 bits: what a float32 holds without rounding, so never up to 1.
    return (_hashed(seed, index, purpose=purpose) >> 8).float() * 2.0**-24


def _hashed(seed: Tensor, index: Tensor, *, purpose: int) -> Tensor:
    """Mix seed (N,), purpose and index into 32 random bits (N, C), in int64."""
    low = _mix((seed & _MASK_32) ^ purpose)
    base = _mix(((seed >> 32) & _MASK_32) ^ low)
    return _mix(_mix(index & _MASK_32) ^ base[:, None])


def pick(
    positive: Tensor, negative: Tensor, keys: Tensor, *, num_slots: int, max_positive: int
) -> Slots:
    """Pick at most `max_positive` positives and fill up with negatives, without replacement.

    Args:
        positive: (N, C) bool.
        negative: (N, C) bool, nowhere true together with `positive`.
        keys: (N, C) int64 from `random_keys`; the largest win.
        num_slots: S, at most C.
        max_positive: at most S.
    """
    outsider = torch.full_like(keys, -1)
    best = torch.where(positive, keys, outsider).topk(max_positive, dim=1).indices
    rest = torch.where(negative, keys, outsider).topk(num_slots, dim=1).indices
    num_positive = positive.sum(1, keepdim=True).clamp(max=max_positive)
    num_negative = negative.sum(1, keepdim=True)
    slot = torch.arange(num_slots, device=keys.device)[None, :]
    is_positive = slot < num_positive
    nth_negative = (slot - num_positive).clamp(min=0)
    is_negative = ~is_positive & (nth_negative < num_negative)
    of_best = best.gather(1, slot.clamp(max=max_positive - 1).expand(len(keys), -1))
    index = torch.where(is_positive, of_best, rest.gather(1, nth_negative))
    return Slots(index, is_positive, is_positive | is_negative)
