"""Encode a mask that comes as strips of columns, without making a whole image of it."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.data.run_lengths import encode_spans

_NO_SPANS: NDArray[np.int64] = np.empty(0, dtype=np.int64)


class MaskStrip(NamedTuple):
    """Some columns of a mask; everything around all of its strips is background."""

    left: int
    """First column in the image."""
    top: int
    """First row in the image."""
    columns: NDArray[np.bool_]
    """(w, h)."""


def encode_strips(strips: Iterable[MaskStrip], *, size_hw: tuple[int, int]) -> bytes:
    """Encode strips from left to right as compressed RLE of an image."""
    height = size_hw[0]
    starts, stops = [_NO_SPANS], [_NO_SPANS]
    for left, top, columns in strips:
        # A span starts and stops where a pixel differs from the one above it.
        padded = np.pad(columns, ((0, 0), (1, 1)))
        edges = np.flatnonzero(padded[:, 1:] != padded[:, :-1])
        column, row = np.divmod(edges, padded.shape[1] - 1)
        pixels = (left + column) * height + top + row
        starts.append(pixels[0::2])
        stops.append(pixels[1::2])
    all_starts, all_stops = np.concatenate(starts), np.concatenate(stops)
    # A span that reaches the bottom of the image goes on at the top of the next column.
    apart = all_starts[1:] != all_stops[:-1]
    return encode_spans(
        np.append(all_starts[:1], all_starts[1:][apart]),
        np.append(all_stops[:-1][apart], all_stops[-1:]),
        size_hw=size_hw,
    ).encoded
