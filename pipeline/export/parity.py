"""Compare an exported model with the model it was made of, on photos.

The whole way from the photo to masks is compared: the file's user resizes without torch.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as mask_api

from pipeline.data.photo import Pixels
from pipeline.evaluation.objects import Objects, select_objects, to_rows
from pipeline.serving.onnx_predictor import OnnxPredictor
from pipeline.serving.predictor import Predictor


class Parity(NamedTuple):
    """The distance of an exported model from its original."""

    photos: int
    objects: int
    """Of the original; 0 for a semantic model."""
    missing: int
    """Objects of either without one of the other within a pixel and of the same category."""
    box_px: float
    """Largest distance of a box's side, in pixels of the photo."""
    score: float
    """Largest difference of a score."""
    worst_mask: float
    """Smallest share of equal pixels in the box around two masks, or in a label map."""
    pixels: int
    """In the boxes around all masks, or in all label maps."""
    equal_pixels: int

    @property
    def equal_share(self) -> float:
        """Share of equal pixels."""
        return self.equal_pixels / max(self.pixels, 1)


def compare(model: Predictor, exported: OnnxPredictor, photos: Iterable[Pixels]) -> Parity:
    """Compare predictions of both, object by object."""
    one = _compare_labels if model.task == "semantic" else _compare_objects
    each = [one(model, exported, pixels) for pixels in photos]
    return Parity(
        photos=len(each),
        objects=sum(part.objects for part in each),
        missing=sum(part.missing for part in each),
        box_px=max((part.box_px for part in each), default=0.0),
        score=max((part.score for part in each), default=0.0),
        worst_mask=min((part.worst_mask for part in each), default=1.0),
        pixels=sum(part.pixels for part in each),
        equal_pixels=sum(part.equal_pixels for part in each),
    )


def _compare_labels(model: Predictor, exported: OnnxPredictor, pixels: Pixels) -> Parity:
    mine, other = (each.find_probs(pixels).argmax(axis=0) for each in (model, exported))
    equal = int((mine == other).sum())
    return Parity(1, 0, 0, 0.0, 0.0, equal / mine.size, mine.size, equal)


def _compare_objects(model: Predictor, exported: OnnxPredictor, pixels: Pixels) -> Parity:
    mine, other = model.find_objects(pixels), exported.find_objects(pixels)
    pairs = _pair(mine, other)
    missing = len(mine.scores) + len(other.scores) - 2 * len(pairs)
    if not pairs:
        return Parity(1, len(mine.scores), missing, 0.0, 0.0, 1.0, 0, 0)
    first, second = (np.array(index) for index in zip(*pairs, strict=True))
    mine, other = select_objects(mine, first), select_objects(other, second)
    size_hw = (pixels.shape[0], pixels.shape[1])
    rows = [to_rows(each, model.categories, size_hw=size_hw) for each in (mine, other)]
    counts = [_count_pixels(a, b) for a, b in zip(*rows, strict=True)]
    return Parity(
        photos=1,
        objects=len(first),
        missing=missing,
        box_px=float(np.abs(mine.boxes_xyxy - other.boxes_xyxy).max()),
        score=float(np.abs(mine.scores - other.scores).max()),
        worst_mask=min(equal / pixels for equal, pixels in counts),
        pixels=sum(pixels for _, pixels in counts),
        equal_pixels=sum(equal for equal, _ in counts),
    )


def _pair(mine: Objects, other: Objects) -> list[tuple[int, int]]:
    """Pair each object with the nearest one of its category that is free and within a pixel."""
    free = set(range(len(other.scores)))
    pairs = []
    for index, box in enumerate(mine.boxes_xyxy):
        near = {
            at: float(np.abs(other.boxes_xyxy[at] - box).max())
            for at in free
            if other.category_index[at] == mine.category_index[index]
        }
        best = min(near, key=near.__getitem__, default=None)
        if best is not None and near[best] <= 1:
            free.remove(best)
            pairs.append((index, best))
    return pairs


def _count_pixels(a: dict[str, Any], b: dict[str, Any]) -> tuple[int, int]:
    """Count the equal pixels in the box around two masks, and all of them."""
    both = mask_api.merge([a["rle"], b["rle"]])
    common = mask_api.area(mask_api.merge([a["rle"], b["rle"]], intersect=True))
    box = mask_api.toBbox(both)
    pixels = max(int(box[2] * box[3]), 1)
    return pixels - (int(mask_api.area(both)) - int(common)), pixels
