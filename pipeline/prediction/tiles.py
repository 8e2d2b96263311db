"""Predict a large photo tile by tile, and merge what crosses the seams.

Neighboring tiles overlap. The middle of an overlap is the seam: each pixel belongs to the tile that
sees more around it. Two objects of neighboring tiles with one category are one object if their
masks agree in the overlap, and its mask is in each tile's own part the mask of that tile. Every
other object keeps its mask. Memory grows with a tile and with the number of objects, not with
objects times pixels.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_api

from pipeline.data.label_png import read_values
from pipeline.data.manifest import Category
from pipeline.data.photo import Pixels
from pipeline.evaluation.encode_strips import MaskStrip, encode_strips
from pipeline.evaluation.label_planes import describe_labels, window_starts
from pipeline.prediction.photo_model import PredictRows, Rows

_SAME_SHARE = 0.5
"""Share of the smaller mask, within the overlap, from which two masks are one object. Not their
IoU: a tile often takes the slice of an object at its border for a smaller object."""


class Tile(NamedTuple):
    """A part of a photo, and the part of it that no neighbor knows better."""

    rows: slice
    columns: slice
    own_rows: slice
    own_columns: slice


class _Part(NamedTuple):
    """An object as one tile shows it."""

    tile: Tile
    row: dict[str, Any]


def make_tiles(size_hw: tuple[int, int], *, side: int, overlap: float) -> list[Tile]:
    """Cover a photo with tiles of at most `side`, at equal distances.

    Args:
        size_hw: of the photo.
        side: of a tile in pixels.
        overlap: smallest share of a side that neighbors have in common.
    """
    rows, columns = (_make_spans(length, min(side, length), overlap=overlap) for length in size_hw)
    return [
        Tile(row, column, own_row, own_column)
        for row, own_row in rows
        for column, own_column in columns
    ]


def predict_tiles(
    predict: PredictRows,
    pixels: Pixels,
    *,
    categories: Sequence[Category],
    is_semantic: bool,
    side: int,
    overlap: float,
) -> Rows:
    """Predict a photo in tiles.

    Args:
        predict: predicts one tile.
        pixels: (H, W, 3) RGB.
        categories: of the model.
        is_semantic: whether `predict` gives label maps.
        side: of a tile in pixels.
        overlap: smallest share of a side that neighbors have in common.
    """
    size_hw = (pixels.shape[0], pixels.shape[1])
    if max(size_hw) <= side:
        return predict(pixels)
    tiles = make_tiles(size_hw, side=side, overlap=overlap)
    if is_semantic:
        labels = np.zeros(size_hw, np.uint8)
        for tile in tiles:
            _copy_labels(labels, predict(_cut(pixels, tile)), tile, categories)
        return [describe_labels(labels, categories)._asdict()]
    parts = [_Part(tile, row) for tile in tiles for row in predict(_cut(pixels, tile))]
    merged = [_merge(group, size_hw) for group in _group(parts)]
    return sorted(merged, key=lambda row: -float(row["score"]))


def _make_spans(length: int, side: int, *, overlap: float) -> list[tuple[slice, slice]]:
    starts = window_starts(length, side, overlap=overlap)
    # Half of the overlap with each neighbor.
    seams = [(start + side + after) // 2 for start, after in pairwise(starts)]
    bounds = [0, *seams, length]
    return [
        (slice(start, start + side), slice(bounds[index], bounds[index + 1]))
        for index, start in enumerate(starts)
    ]


def _cut(pixels: Pixels, tile: Tile) -> Pixels:
    return np.ascontiguousarray(pixels[tile.rows, tile.columns])


def _copy_labels(
    labels: NDArray[np.uint8], rows: Rows, tile: Tile, categories: Sequence[Category]
) -> None:
    values = read_values(rows[0]["label_map"], bits=8, max_pixels=None)
    index_of = np.zeros(256, np.uint8)
    index_of[[each.category_id for each in categories]] = np.arange(len(categories))
    inside = (
        slice(tile.own_rows.start - tile.rows.start, tile.own_rows.stop - tile.rows.start),
        slice(
            tile.own_columns.start - tile.columns.start, tile.own_columns.stop - tile.columns.start
        ),
    )
    labels[tile.own_rows, tile.own_columns] = index_of[values[inside]]


def _group(parts: Sequence[_Part]) -> list[list[_Part]]:
    """Group the parts of one object, by union of all pairs that agree."""
    group_of = list(range(len(parts)))

    def find(index: int) -> int:
        while group_of[index] != index:
            index = group_of[index]
        return index

    for first, a in enumerate(parts):
        for second in range(first + 1, len(parts)):
            if find(first) != find(second) and _is_same(a, parts[second]):
                group_of[find(second)] = find(first)
    groups: dict[int, list[_Part]] = {}
    for index, part in enumerate(parts):
        groups.setdefault(find(index), []).append(part)
    return list(groups.values())


def _is_same(a: _Part, b: _Part) -> bool:
    if a.tile == b.tile or a.row["category_index"] != b.row["category_index"]:
        return False
    rows, columns = (
        slice(max(x.start, y.start), min(x.stop, y.stop))
        for x, y in ((a.tile.rows, b.tile.rows), (a.tile.columns, b.tile.columns))
    )
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return False
    if not (_reaches(a, rows, columns) and _reaches(b, rows, columns)):
        return False
    masks = [_decode(each, rows, columns) for each in (a, b)]
    smaller = min(int(each.sum()) for each in masks)
    return smaller > 0 and int((masks[0] & masks[1]).sum()) >= _SAME_SHARE * smaller


def _reaches(part: _Part, rows: slice, columns: slice) -> bool:
    """Tell whether the box of a part reaches into a span of the photo; masks are slower."""
    x0, y0, x1, y1 = part.row["box_xyxy"]
    left, top = part.tile.columns.start, part.tile.rows.start
    return bool(
        x0 + left < columns.stop
        and x1 + left > columns.start
        and y0 + top < rows.stop
        and y1 + top > rows.start
    )


def _decode(part: _Part, rows: slice, columns: slice) -> NDArray[np.bool_]:
    """Decode the mask of a part within a span of the photo that its tile covers."""
    top, left = part.tile.rows.start, part.tile.columns.start
    mask = np.asarray(mask_api.decode(part.row["rle"]), dtype=bool)
    return mask[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]


def _merge(group: Sequence[_Part], size_hw: tuple[int, int]) -> dict[str, Any]:
    """Make one row, in pixels of the photo, of the parts of an object."""
    best = max((part.row for part in group), key=lambda row: float(row["score"]))
    boxes = np.array([_move_box(part) for part in group])
    box = [*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist()]
    left, top = (max(0, int(each) - 1) for each in box[:2])
    right, bottom = min(int(box[2]) + 2, size_hw[1]), min(int(box[3]) + 2, size_hw[0])
    mask = np.zeros((bottom - top, right - left), bool)
    for part in group:
        whole = len(group) == 1
        rows = _meet(part.tile.rows if whole else part.tile.own_rows, top, bottom)
        columns = _meet(part.tile.columns if whole else part.tile.own_columns, left, right)
        if rows.start < rows.stop and columns.start < columns.stop:
            at = (
                slice(rows.start - top, rows.stop - top),
                slice(columns.start - left, columns.stop - left),
            )
            mask[at] |= _decode(part, rows, columns)
    counts = encode_strips([MaskStrip(left, top, mask.T)], size_hw=size_hw)
    return {**best, "box_xyxy": box, "rle": {"size": list(size_hw), "counts": counts.decode()}}


def _move_box(part: _Part) -> list[float]:
    x0, y0, x1, y1 = part.row["box_xyxy"]
    left, top = part.tile.columns.start, part.tile.rows.start
    return [x0 + left, y0 + top, x1 + left, y1 + top]


def _meet(span: slice, start: int, stop: int) -> slice:
    return slice(max(span.start, start), min(span.stop, stop))
