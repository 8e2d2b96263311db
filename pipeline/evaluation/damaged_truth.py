"""Damage the true masks of an image, as masks for a refiner to be evaluated on.

The damage of an object depends on its image id and annotation id alone, and is computed on the CPU:
every evaluation gives every refiner the same masks.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as mask_api

from bsm.refine.damage import damage_masks
from pipeline.data.seeds import hash_ints
from pipeline.evaluation.mask_quality import decode_mask
from pipeline.evaluation.rle import Rle

_SIDE = 160
"""Side of the square in which a mask is damaged, in cells."""

_CONTEXT = 1.4
"""Side of that square, in longer sides of the object's box."""

_MIN_EXTENT_PX = 16

_OBJECTS_PER_PASS = 16


def damage_truth(rles: Sequence[Rle], *, image_id: int, annotation_ids: Sequence[int]) -> list[Rle]:
    """Damage the masks of all objects of an image; one that would vanish stays as it is.

    Args:
        rles: true masks of the same size.
        image_id: of the image.
        annotation_ids: of the objects.
    """
    if not rles:
        return []
    height, width = rles[0]["size"]
    objects = np.zeros((height, width), dtype=np.uint16)
    for rle in rles:
        objects += decode_mask(rle)
    words = hash_ints(image_id, np.asarray(annotation_ids, dtype=np.int64))
    seeds = torch.from_numpy((words >> np.uint64(1)).astype(np.int64))
    damaged: list[Rle] = []
    for start in range(0, len(rles), _OBJECTS_PER_PASS):
        part = rles[start : start + _OBJECTS_PER_PASS]
        squares = [_find_square(rle) for rle in part]
        masks = np.empty((len(part), 2, _SIDE, _SIDE), dtype=np.float32)
        for index, (rle, square) in enumerate(zip(part, squares, strict=True)):
            mask = decode_mask(rle)
            masks[index, 0] = _cut(mask, square)
            masks[index, 1] = _cut(objects > mask, square)
        truth, neighbors = torch.from_numpy(masks >= 0.5).float().unbind(1)
        found = damage_masks(
            truth, neighbors, seed=seeds[start : start + _OBJECTS_PER_PASS]
        ).numpy()
        damaged += map(_encode, found, squares, part)
    return damaged


_Square = tuple[int, int, int]
"""Left, top and side, in pixels; it may reach outside the image."""


def _find_square(rle: Rle) -> _Square:
    x, y, width, height = mask_api.toBbox(rle)
    side = max(round(_CONTEXT * max(width, height)), _MIN_EXTENT_PX)
    return round(x + (width - side) / 2), round(y + (height - side) / 2), side


def _cut(mask: NDArray[np.bool_], square: _Square) -> NDArray[np.float32]:
    """Cut out a square and resize it to cells; outside the image is 0."""
    pixels = np.zeros((square[2], square[2]), dtype=np.float32)
    inside, place = _overlap(square, mask.shape)
    pixels[inside] = mask[place]
    shrinks = square[2] > _SIDE
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, (_SIDE, _SIDE), interpolation=method), dtype=np.float32)


def _encode(cells: NDArray[np.float32], square: _Square, true: Rle) -> Rle:
    """Place the cells of a square in an image of zeros, and encode it."""
    pixels = cv2.resize(cells, (square[2], square[2]), interpolation=cv2.INTER_LINEAR)
    mask = np.zeros(true["size"], dtype=np.uint8, order="F")
    inside, place = _overlap(square, mask.shape)
    mask[place] = pixels[inside] >= 0.5
    if not mask.any():
        return true
    return {"size": list(true["size"]), "counts": mask_api.encode(mask)["counts"]}


def _overlap(
    square: _Square, size_hw: tuple[int, ...]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return the part of a square that is inside the image, in the square and in the image."""
    left, top, side = square
    inside, place = [], []
    for start, size in zip((top, left), size_hw, strict=True):
        first, last = max(start, 0), min(start + side, size)
        inside.append(slice(first - start, last - start))
        place.append(slice(first, last))
    return (inside[0], inside[1]), (place[0], place[1])
