"""Check and measure many compressed run lengths at once.

`run_lengths.decode_counts` checks one mask and names what is wrong with it; a call costs much more
than the arithmetic on the few hundred bytes of a mask. Here the bytes of many masks are decoded as
one array.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_BATCH_BYTES = 2**18
"""Arrays of a batch stay in the processor's cache."""
_MAX_GROUPS = 8
"""Groups of 5 bits of a number, as in run_lengths."""


def measure_areas(encoded: Sequence[bytes], num_pixels: Sequence[int]) -> list[int | None]:
    """Count the pixels of masks whose run lengths are valid.

    Args:
        encoded: COCO's compressed counts of each mask.
        num_pixels: of each mask's image.

    Returns:
        The area of each mask; None where the counts break a rule, or stand in a batch in which
        others do. Let `run_lengths.decode_counts` decide about those.
    """
    areas: list[int | None] = []
    start = size = 0
    for stop, counts in enumerate(encoded, start=1):
        size += len(counts)
        if size >= _BATCH_BYTES or stop == len(encoded):
            areas += _measure_batch(encoded[start:stop], np.asarray(num_pixels[start:stop]))
            start, size = stop, 0
    return areas


def _measure_batch(encoded: Sequence[bytes], num_pixels: Ints) -> Sequence[int | None]:
    invalid = [None] * len(encoded)
    # Below 48 wraps around to large values.
    groups = np.frombuffer(b"".join(encoded), dtype=np.uint8) - np.uint8(48)
    stops = np.cumsum([len(counts) for counts in encoded])
    if not all(encoded) or (groups > 63).any() or (groups[stops - 1] & 32).any():
        return invalid
    lasts = np.flatnonzero((groups & 32) == 0)
    widths = np.diff(lasts, prepend=-1)
    if widths.max() > _MAX_GROUPS:
        return invalid
    numbers = _read_numbers(groups, lasts, widths)
    # Each mask gets an even number of runs, the last one of 0 if it has an odd number.
    counts = np.diff(np.searchsorted(lasts, stops), prepend=0)
    odd = (counts & 1).astype(np.bool_)
    pairs = np.insert(numbers, counts.cumsum()[odd], 0).reshape(-1, 2)
    ends = ((counts + 1) // 2).cumsum()
    starts = np.concatenate([[0], ends[:-1]])
    _add_up_differences(pairs, starts)
    pairs[ends[odd] - 1, 1] = 0
    background, areas = np.add.reduceat(pairs, starts).T
    # Runs that are not negative and fill the image are no longer than the image.
    if pairs.min() < 0 or (background + areas != num_pixels).any():
        return invalid
    measured: list[int] = areas.tolist()
    return measured


def _read_numbers(groups: NDArray[np.uint8], lasts: Ints, widths: Ints) -> Ints:
    """Read the numbers that end at `lasts` and have `widths` groups, lowest group first."""
    numbers = (groups[lasts] & 31).astype(np.int64)
    numbers -= (numbers & 16) << 1  # the sign
    for back in range(1, int(widths.max())):
        longer = np.flatnonzero(widths > back)
        numbers[longer] = (numbers[longer] << 5) | (groups[lasts[longer] - back] & 31)
    return numbers


def _add_up_differences(pairs: Ints, starts: Ints) -> None:
    """Turn differences into runs in place: from its fourth number on, each adds the one two before.

    Args:
        pairs: (n, 2), the numbers of all masks; the first three of a mask are runs themselves.
        starts: index of the first pair of each mask.
    """
    firsts = pairs[starts, 0]
    pairs[starts, 0] = 0
    # One sum over all masks, in which each mask starts by taking off what those before it sum to.
    totals = np.add.reduceat(pairs, starts)
    pairs[starts[1:]] -= totals[:-1]
    np.cumsum(pairs, axis=0, out=pairs)
    pairs[starts, 0] = firsts
