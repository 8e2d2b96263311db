"""Read COCO's three mask formats into one: run lengths in column-major order.

Everything is checked before pycocotools sees it, so a malformed mask is an error with a reason and
never an out-of-bounds read. Masks are not decoded to pixels: area and box come from the runs.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

Runs = NDArray[np.int64]

Segmentation = list[list[float]] | dict[str, Any]
"""Polygons, or an object with size and counts, as in an annotation."""

MAX_OUTLINE_PX = 2**22
"""Of all polygons of a mask. pycocotools needs 80 bytes per pixel of outline; real outlines are far
shorter."""


class MaskError(ValueError):
    """A segmentation that breaks a rule; `kind` is one of pipeline.data.problems.KINDS."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True, kw_only=True, slots=True)
class RunLengths:
    """A binary mask of an image as lengths of alternating runs, starting with zeros."""

    size_hw: tuple[int, int]
    encoded: bytes
    """COCO's compressed counts."""
    runs: Runs
    """(number of runs,); they add up to height * width."""

    @property
    def area_px(self) -> int:
        """Number of pixels in the mask."""
        return int(self.runs[1::2].sum())

    @property
    def box_xyxy(self) -> tuple[int, int, int, int]:
        """The smallest box around the mask, which must not be empty."""
        height = self.size_hw[0]
        stops = self.runs.cumsum()[1::2]
        starts = stops - self.runs[1::2]
        filled = stops > starts
        starts, lasts = starts[filled], stops[filled] - 1
        left, right = int(starts[0] // height), int(lasts[-1] // height) + 1
        if (starts // height != lasts // height).any():
            return left, 0, right, height
        return left, int((starts % height).min()), right, int((lasts % height).max()) + 1


def read_segmentation(segmentation: Segmentation, size_hw: tuple[int, int]) -> RunLengths:
    """Read polygons, uncompressed run lengths or compressed ones.

    Args:
        segmentation: the value of an annotation's "segmentation".
        size_hw: the image's size.

    Raises:
        MaskError: the first broken rule.
    """
    if isinstance(segmentation, list):
        _check_polygons(segmentation, size_hw)
        polygons = coco_mask.frPyObjects(segmentation, *size_hw)
        encoded = bytes(coco_mask.merge(polygons)["counts"])
        runs = _decode(encoded)
    else:
        encoded, runs = _from_runs(segmentation, size_hw)
    lengths = RunLengths(size_hw=size_hw, encoded=encoded, runs=runs)
    if lengths.area_px == 0:
        raise MaskError("mask_empty", "it covers no pixel")
    return lengths


def encode_instance_masks(ids: NDArray[np.unsignedinteger[Any]]) -> dict[int, RunLengths]:
    """Encode the mask of every id in an instance map, in one pass.

    Args:
        ids: (H, W).

    Returns:
        Masks by ascending id.
    """
    height, width = ids.shape
    flat = ids.T.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    stops = np.append(starts[1:], flat.size)
    values = flat[starts]
    return {
        int(value): encode_spans(
            starts[values == value], stops[values == value], size_hw=(height, width)
        )
        for value in np.unique(values)
    }


def encode_spans(starts: Runs, stops: Runs, *, size_hw: tuple[int, int]) -> RunLengths:
    """Encode a mask from its spans of ones.

    Args:
        starts: (n,) first pixel of each span, counted down the columns.
        stops: (n,) the pixel after each span, before the next span's first.
        size_hw: of the image.
    """
    height, width = size_hw
    runs = np.empty(2 * len(starts) + 1, dtype=np.int64)
    runs[0::2] = np.append(starts, height * width) - np.concatenate([[0], stops])
    runs[1::2] = stops - starts
    if runs[-1] == 0:
        # COCO omits a trailing run of length 0.
        runs = runs[:-1]
    packed = {"size": [height, width], "counts": runs.tolist()}
    encoded = bytes(coco_mask.frPyObjects(packed, height, width)["counts"])
    return RunLengths(size_hw=size_hw, encoded=encoded, runs=runs)


def measure_overhang_px(segmentation: Segmentation, size_hw: tuple[int, int]) -> float:
    """Measure how far polygons reach outside the image; 0 for run lengths."""
    if not isinstance(segmentation, list):
        return 0.0
    height, width = size_hw
    farthest = 0.0
    for polygon in segmentation:
        x, y = polygon[0::2], polygon[1::2]
        farthest = max(farthest, -min(x), -min(y), max(x) - width, max(y) - height)
    return farthest


def decode_counts(encoded: bytes, size_hw: tuple[int, int]) -> Runs:
    """Read COCO's compressed counts of a whole image.

    Raises:
        MaskError: they are not counts, or do not fill the image.
    """
    runs = _decode(encoded)
    _check_runs(runs, size_hw)
    return runs


def _check_polygons(polygons: list[list[float]], size_hw: tuple[int, int]) -> None:
    if not polygons:
        raise MaskError("mask_empty", "segmentation is an empty list")
    far, outline_px = max(size_hw), 0.0
    for number, polygon in enumerate(polygons, start=1):
        points = _points(polygon, number)
        if points.min() < -far or points.max() > 2 * far:
            worst = points.flat[np.abs(points).argmax()]
            raise MaskError("mask_format", f"polygon {number} has a point at {worst:g}")
        length = np.abs(np.diff(points, axis=0)).sum() + np.abs(points[0] - points[-1]).sum()
        outline_px += length
        if outline_px > MAX_OUTLINE_PX:
            which = f"polygon {number} has" if length > MAX_OUTLINE_PX else "the polygons have"
            raise MaskError("mask_format", f"{which} an outline of {outline_px:.0f} px")


def _points(polygon: list[float], number: int) -> NDArray[np.float64]:
    """Return a polygon's points, (n, 2)."""
    if len(polygon) < 6 or len(polygon) % 2:
        raise MaskError("polygon_short", f"polygon {number} has {len(polygon)} numbers")
    if not {*map(type, polygon)} <= {int, float}:
        raise MaskError("mask_format", f"polygon {number} holds a value that is not a number")
    try:
        points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
    except OverflowError:
        points = np.full((1, 2), np.inf)
    if not np.isfinite(points).all():
        raise MaskError("not_finite", f"polygon {number} holds NaN or infinity")
    return points


def _from_runs(segmentation: dict[str, Any], size_hw: tuple[int, int]) -> tuple[bytes, Runs]:
    height, width = size_hw
    if segmentation.get("size") != [height, width]:
        raise MaskError(
            "mask_format",
            f"size is {segmentation.get('size')!s:.40}, the image is [{height}, {width}]",
        )
    counts = segmentation["counts"]
    if isinstance(counts, str):
        if not counts.isascii():
            raise MaskError("mask_format", "counts hold characters that are not ASCII")
        encoded = counts.encode("ascii")
        return encoded, decode_counts(encoded, size_hw)
    if not {*map(type, counts)} <= {int} or not all(0 <= run <= height * width for run in counts):
        raise MaskError("mask_format", "a run length is not an integer between 0 and the area")
    runs = np.asarray(counts, dtype=np.int64)
    _check_runs(runs, size_hw)
    packed = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return bytes(packed["counts"]), runs


def _check_runs(runs: Runs, size_hw: tuple[int, int]) -> None:
    pixels = size_hw[0] * size_hw[1]
    if len(runs) and (runs.min() < 0 or runs.max() > pixels):
        raise MaskError("mask_format", "a run length is negative or longer than the image")
    if runs.sum() != pixels:
        raise MaskError(
            "mask_format", f"run lengths add up to {runs.sum()}, the image has {pixels} pixels"
        )


def _decode(encoded: bytes) -> Runs:
    """Decode compressed counts.

    A number is written in groups of 5 bits, lowest first, as characters from 48 on; bit 5 means
    that more groups follow, bit 4 of the last group is the sign. From the fourth number on, each
    is the difference to the number two before.
    """
    groups = np.frombuffer(encoded, dtype=np.uint8).astype(np.int64) - 48
    if len(groups) == 0:
        return groups
    if groups.min() < 0 or groups.max() > 63 or groups[-1] & 32:
        raise MaskError("mask_format", "counts are not compressed run lengths")
    last = np.flatnonzero((groups & 32) == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    widths = last - first + 1
    if widths.max() > 8:
        raise MaskError("mask_format", "counts hold a number of more than 40 bits")
    position = np.arange(len(groups)) - np.repeat(first, widths)
    numbers = np.add.reduceat((groups & 31) << (5 * position), first)
    negative = (groups[last] & 16) != 0
    numbers -= np.where(negative, np.left_shift(1, 5 * widths), 0)
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers
