"""Cityscapes' instance AP and AP50, by mask and by boundary, from the counts of frames.

The rules are those of cityscapesScripts (evalInstanceLevelSemanticLabeling), not COCO's: IoU must
exceed the threshold; if several masks match an object, the best counts and the others are false
positives; an unmatched mask is ignored if most of it is on void, on a group of objects or on an
object below 100 pixels. Boundary AP uses the lesser of mask IoU and band IoU (boundary-iou-api).
The results equal those of the two programs to the last bit.
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

# As in cityscapesScripts: some differ from 0.55, 0.60, ... in the last bit.
_IOU_THRESHOLDS = np.arange(0.5, 1.0, 0.05)

MIN_OBJECT_PX = 100
"""Smaller objects are ignored (cityscapesScripts: minRegionSizes)."""

Values = NDArray[np.float64]


class InstanceScores(NamedTuple):
    """AP over IoU .50 to .95, and at .50; NaN if the truth has no such objects."""

    ap: float
    ap50: float


@dataclass(frozen=True, kw_only=True, slots=True)
class CityscapesMetrics:
    """AP of a split, 0 to 1."""

    mask: InstanceScores
    """Mean over the classes that the truth has."""
    boundary: InstanceScores
    mask_by_class: dict[str, InstanceScores]
    """By class name, in the order of label ids."""
    boundary_by_class: dict[str, InstanceScores]
    objects: dict[str, int]
    """Number of objects by class name, without groups and objects below 100 pixels."""
    frames: int
    detections: int
    dilation_ratio: float
    """Width of the boundary band, in image diagonals."""
    notices: tuple[str, ...] = ()


def cityscapes_metrics(
    frames: Sequence[FrameCounts], *, dilation_ratio: float = CITYSCAPES_DILATION_RATIO
) -> CityscapesMetrics:
    """Turn the counts of all frames, in any order, into AP.

    Args:
        frames: from `count_frame`, one per frame.
        dilation_ratio: of `count_frame`.
    """
    by_mask, by_boundary = (
        np.array(
            [_compute_class_ap(frames, each.label_id, bands=bands) for each in INSTANCE_CLASSES]
        )
        for bands in (False, True)
    )
    names = [each.name for each in INSTANCE_CLASSES]
    objects = {
        each.name: sum(int(_select_objects(f, each.label_id).sum()) for f in frames)
        for each in INSTANCE_CLASSES
    }
    return CityscapesMetrics(
        mask=_average(by_mask),
        boundary=_average(by_boundary),
        mask_by_class=dict(zip(names, map(_average, by_mask[:, None]), strict=True)),
        boundary_by_class=dict(zip(names, map(_average, by_boundary[:, None]), strict=True)),
        objects=objects,
        frames=len(frames),
        detections=sum(len(each.scores) for each in frames),
        dilation_ratio=dilation_ratio,
        notices=_collect_notices(frames),
    )


def _compute_class_ap(frames: Sequence[FrameCounts], label_id: int, *, bands: bool) -> Values:
    """Compute the AP of a class at each IoU threshold."""
    matches = [_match(frame, label_id, bands=bands) for frame in frames]
    objects = sum(int(_select_objects(frame, label_id).sum()) for frame in frames)
    if not objects:
        return np.full(len(_IOU_THRESHOLDS), math.nan)
    return np.array(
        [
            _area_under_curve(
                np.concatenate([frame[threshold].true_positives for frame in matches]),
                np.concatenate([frame[threshold].false_positives for frame in matches]),
                objects=objects,
            )
            for threshold in range(len(_IOU_THRESHOLDS))
        ]
    )


class _Matches(NamedTuple):
    """Scores of a frame's true and false positives of a class at one IoU threshold."""

    true_positives: Values
    false_positives: Values


def _match(frame: FrameCounts, label_id: int, *, bands: bool) -> list[_Matches]:
    """Match the masks of a class at each IoU threshold (T)."""
    found = frame.label_ids == label_id
    same = _select_class(frame, label_id)
    scores = frame.scores[found]
    iou_DO, touches_DO = _compute_iou(frame, found, same, bands=bands)
    counted = _select_objects(frame, label_id)[same]
    above_TDO = iou_DO > _IOU_THRESHOLDS[:, None, None]
    ignored = _IOU_THRESHOLDS[:, None] < _compute_ignored_share(frame, found, same, touches_DO)
    wrong_TD = ~above_TDO.any(axis=2) & ~ignored
    matches = []
    for above_DO, wrong in zip(above_TDO[:, :, counted], wrong_TD, strict=True):
        on, _ = above_DO.nonzero()
        best = np.where(above_DO, scores[:, None], -math.inf).max(axis=0, initial=-math.inf)
        best = best[above_DO.any(axis=0)]
        matches.append(_Matches(best, np.append(scores[wrong], _remove(scores[on], best))))
    return matches


def _remove(scores: Values, removed: Values) -> Values:
    """Remove each of the given values from the scores once."""
    values, counts = np.unique(scores, return_counts=True)
    found, times = np.unique(removed, return_counts=True)
    counts[np.searchsorted(values, found)] -= times
    return np.repeat(values, counts)


def _compute_iou(
    frame: FrameCounts, found: NDArray[np.bool_], same: NDArray[np.bool_], *, bands: bool
) -> tuple[Values, NDArray[np.bool_]]:
    """Compute IoU (D, O), and which pairs intersect."""
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


def _compute_ignored_share(
    frame: FrameCounts,
    found: NDArray[np.bool_],
    same: NDArray[np.bool_],
    touches: NDArray[np.bool_],
) -> Values:
    """Compute the share of each mask (D,) on void, groups and small objects.

    A small group counts twice, as in cityscapesScripts. For boundary AP, groups and small objects
    count only if the bands intersect, as in boundary-iou-api.
    """
    is_group = frame.object_ids[same] < FIRST_INSTANCE_ID
    is_small = frame.object_px[same] < MIN_OBJECT_PX
    shared = np.where(touches, frame.shared_px[np.ix_(found, same)], 0)
    ignored_px = frame.void_px[found] + shared @ (is_group.astype(int) + is_small)
    share: Values = ignored_px / frame.found_px[found]
    return share


def _select_class(frame: FrameCounts, label_id: int) -> NDArray[np.bool_]:
    ids = frame.object_ids
    same: NDArray[np.bool_] = (ids == label_id) | (ids // FIRST_INSTANCE_ID == label_id)
    return same


def _select_objects(frame: FrameCounts, label_id: int) -> NDArray[np.bool_]:
    """Select the objects (O,) of a class that count: neither groups nor small."""
    large = frame.object_px >= MIN_OBJECT_PX
    counted: NDArray[np.bool_] = large & (frame.object_ids // FIRST_INSTANCE_ID == label_id)
    return counted


def _area_under_curve(true_positives: Values, false_positives: Values, *, objects: int) -> float:
    """Integrate precision over recall, in steps centered on the points of the curve."""
    scores = np.append(true_positives, false_positives)
    if not scores.size:
        # cityscapesScripts fails with an IndexError here unless the class has no mask at all.
        return 0.0
    order = np.argsort(scores)
    is_hit = np.append(np.ones(len(true_positives)), np.zeros(len(false_positives)))[order]
    _, first = np.unique(scores[order], return_index=True)
    below = np.append(np.cumsum(is_hit), 0.0)[first - 1]
    hits = len(true_positives) - below
    precision = np.append(hits / (len(scores) - first), 1.0)
    recall = np.append(hits / objects, 0.0)
    widths = np.convolve(
        np.concatenate([recall[:1], recall, [0.0]]), [-0.5, 0.0, 0.5], mode="valid"
    )
    return float(np.dot(precision, widths))


def _average(ap: Values) -> InstanceScores:
    """Average AP (classes, thresholds) over the classes that the truth has."""
    if np.isnan(ap).all():
        return InstanceScores(math.nan, math.nan)
    return InstanceScores(float(np.nanmean(ap)), float(np.nanmean(ap[:, 0])))


def _collect_notices(frames: Sequence[FrameCounts]) -> tuple[str, ...]:
    notices = []
    empty = sum(each.empty for each in frames)
    if empty:
        notices.append(f"{empty} empty masks not counted, as in cityscapesScripts")
    foreign = [label_id for each in frames for label_id in each.foreign_ids]
    if foreign:
        ids = ", ".join(map(str, sorted(set(foreign))))
        notices.append(f"{len(foreign)} masks of classes without instances ({ids}) not counted")
    if not any(len(each.scores) for each in frames):
        notices.append("no detections: every AP is 0")
    return tuple(notices)
