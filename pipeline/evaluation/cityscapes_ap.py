"""Cityscapes' instance AP and AP50, by mask and by boundary, from the counts of frames.

The rules are those of cityscapesScripts (evalInstanceLevelSemanticLabeling), which are not COCO's:
an overlap must exceed the threshold, of several masks on one object the best counts and the others
are errors, and a mask that matches nothing is forgiven where most of it lies on void, on a group of
objects or on an object below 100 pixels. By boundary, the overlap is the lesser of the masks' and
the bands' (boundary-iou-api). Both give the same numbers as these programs, to the last bit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.data.cityscapes_classes import INSTANCE_CLASSES
from pipeline.evaluation.bands import CITYSCAPES_DILATION_RATIO
from pipeline.evaluation.cityscapes_frames import FIRST_INSTANCE_ID, FrameCounts

# Made as in cityscapesScripts: some are a bit above what one would write.
_OVERLAPS = np.arange(0.5, 1.0, 0.05)

MIN_OBJECT_PX = 100
"""Smaller objects are not asked for (cityscapesScripts: minRegionSizes)."""

Values = NDArray[np.float64]


class InstanceScores(NamedTuple):
    """AP over IoU .50 to .95, and at .50; NaN where the truth has no such objects."""

    ap: float
    ap50: float


@dataclass(frozen=True, kw_only=True, slots=True)
class CityscapesMetrics:
    """The numbers of a split, 0 to 1."""

    mask: InstanceScores
    """Mean over the classes that the truth has."""
    boundary: InstanceScores
    mask_by_class: dict[str, InstanceScores]
    """By the class's name, in the order of label ids."""
    boundary_by_class: dict[str, InstanceScores]
    objects: dict[str, int]
    """By the class's name: those that are asked for, of at least 100 pixels and no groups."""
    frames: int
    detections: int
    dilation_ratio: float
    """The band of the boundary, in image diagonals."""
    notices: tuple[str, ...] = ()


def cityscapes_metrics(
    frames: Sequence[FrameCounts], *, dilation_ratio: float = CITYSCAPES_DILATION_RATIO
) -> CityscapesMetrics:
    """Turn the counts of all frames into AP; their order changes nothing.

    Args:
        frames: what `count_frame` gives for each.
        dilation_ratio: what it was given; shown beside the numbers.
    """
    by_mask, by_boundary = (
        np.array([_class_ap(frames, each.label_id, bands=bands) for each in INSTANCE_CLASSES])
        for bands in (False, True)
    )
    names = [each.name for each in INSTANCE_CLASSES]
    asked = {
        each.name: sum(int(_asked(f, each.label_id).sum()) for f in frames)
        for each in INSTANCE_CLASSES
    }
    return CityscapesMetrics(
        mask=_scores(by_mask),
        boundary=_scores(by_boundary),
        mask_by_class=dict(zip(names, map(_scores, by_mask[:, None]), strict=True)),
        boundary_by_class=dict(zip(names, map(_scores, by_boundary[:, None]), strict=True)),
        objects=asked,
        frames=len(frames),
        detections=sum(len(each.scores) for each in frames),
        dilation_ratio=dilation_ratio,
        notices=_notices(frames),
    )


def _class_ap(frames: Sequence[FrameCounts], label_id: int, *, bands: bool) -> Values:
    """Give the AP of a class at each overlap."""
    parts = [_match(frame, label_id, bands=bands) for frame in frames]
    objects = sum(int(_asked(frame, label_id).sum()) for frame in frames)
    if not objects:
        return np.full(len(_OVERLAPS), math.nan)
    return np.array(
        [
            _area_under_curve(
                np.concatenate([part[place].right for part in parts]),
                np.concatenate([part[place].wrong for part in parts]),
                objects=objects,
            )
            for place in range(len(_OVERLAPS))
        ]
    )


class _Outcome(NamedTuple):
    """What a class's masks of a frame are at one overlap, by their scores."""

    right: Values
    wrong: Values


def _match(frame: FrameCounts, label_id: int, *, bands: bool) -> list[_Outcome]:
    """Tell right masks from wrong ones, at each overlap (T)."""
    found = frame.label_ids == label_id
    same = _of_class(frame, label_id)
    scores = frame.scores[found]
    overlap_DO, touches_DO = _overlap(frame, found, same, bands=bands)
    asked = _asked(frame, label_id)[same]
    above_TDO = overlap_DO > _OVERLAPS[:, None, None]
    excused = _OVERLAPS[:, None] < _ignorable(frame, found, same, touches_DO)
    wrong_TD = ~above_TDO.any(axis=2) & ~excused
    outcomes = []
    for above_DO, wrong in zip(above_TDO[:, :, asked], wrong_TD, strict=True):
        on, _ = above_DO.nonzero()
        best = np.where(above_DO, scores[:, None], -math.inf).max(axis=0, initial=-math.inf)
        best = best[above_DO.any(axis=0)]
        outcomes.append(_Outcome(best, np.append(scores[wrong], _without(scores[on], best))))
    return outcomes


def _without(scores: Values, some: Values) -> Values:
    """Take each of `some` out of the scores once."""
    values, counts = np.unique(scores, return_counts=True)
    taken, times = np.unique(some, return_counts=True)
    counts[np.searchsorted(values, taken)] -= times
    return np.repeat(values, counts)


def _overlap(
    frame: FrameCounts, found: NDArray[np.bool_], same: NDArray[np.bool_], *, bands: bool
) -> tuple[Values, NDArray[np.bool_]]:
    """Give IoU (D, O), and which pairs touch at all."""
    pick = np.ix_(found, same)
    shared = frame.shared_px[pick]
    iou = shared / (frame.object_px[same] + frame.found_px[found][:, None] - shared)
    touches = shared > 0
    if bands:
        shared = frame.shared_band_px[pick]
        union = frame.object_band_px[same] + frame.found_band_px[found][:, None] - shared
        iou = np.minimum(iou, shared / union)
        touches &= shared > 0
    return np.where(touches, iou, 0.0), touches


def _ignorable(
    frame: FrameCounts,
    found: NDArray[np.bool_],
    same: NDArray[np.bool_],
    touches: NDArray[np.bool_],
) -> Values:
    """Give the share of each mask (D,) that lies on void, groups and small objects.

    A small group counts twice, as in cityscapesScripts; by boundary, groups and small objects count
    where the bands touch, as in boundary-iou-api.
    """
    is_group = frame.object_ids[same] < FIRST_INSTANCE_ID
    is_small = frame.object_px[same] < MIN_OBJECT_PX
    shared = np.where(touches, frame.shared_px[np.ix_(found, same)], 0)
    ignored_px = frame.void_px[found] + shared @ (is_group.astype(int) + is_small)
    share: Values = ignored_px / frame.found_px[found]
    return share


def _of_class(frame: FrameCounts, label_id: int) -> NDArray[np.bool_]:
    ids = frame.object_ids
    same: NDArray[np.bool_] = (ids == label_id) | (ids // FIRST_INSTANCE_ID == label_id)
    return same


def _asked(frame: FrameCounts, label_id: int) -> NDArray[np.bool_]:
    """Tell which objects a model is asked for (O,)."""
    large = frame.object_px >= MIN_OBJECT_PX
    asked: NDArray[np.bool_] = large & (frame.object_ids // FIRST_INSTANCE_ID == label_id)
    return asked


def _area_under_curve(right: Values, wrong: Values, *, objects: int) -> float:
    """Give the area under precision over recall, by steps around each point of the curve."""
    scores = np.append(right, wrong)
    if not scores.size:
        # cityscapesScripts ends with an IndexError here unless no mask of the class was found.
        return 0.0
    order = np.argsort(scores)
    is_right = np.append(np.ones(len(right)), np.zeros(len(wrong)))[order]
    _, first = np.unique(scores[order], return_index=True)
    below = np.append(np.cumsum(is_right), 0.0)[first - 1]
    hits = len(right) - below
    precision = np.append(hits / (len(scores) - first), 1.0)
    recall = np.append(hits / objects, 0.0)
    widths = np.convolve(
        np.concatenate([recall[:1], recall, [0.0]]), [-0.5, 0.0, 0.5], mode="valid"
    )
    return float(np.dot(precision, widths))


def _scores(ap: Values) -> InstanceScores:
    """Average AP (classes, overlaps) over what the truth has."""
    if np.isnan(ap).all():
        return InstanceScores(math.nan, math.nan)
    return InstanceScores(float(np.nanmean(ap)), float(np.nanmean(ap[:, 0])))


def _notices(frames: Sequence[FrameCounts]) -> tuple[str, ...]:
    notices = []
    empty = sum(each.empty for each in frames)
    if empty:
        notices.append(f"{empty} masks without a pixel: not counted, as in cityscapesScripts")
    foreign = [label_id for each in frames for label_id in each.foreign_ids]
    if foreign:
        ids = ", ".join(map(str, sorted(set(foreign))))
        notices.append(f"{len(foreign)} masks of classes without instances ({ids}): not counted")
    if not any(len(each.scores) for each in frames):
        notices.append("there are no detections at all: every AP is 0")
    return tuple(notices)
