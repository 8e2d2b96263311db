"""Test-time augmentation: predict flipped and scaled views of a photo, and merge them.

Objects of different views with the same category and overlapping boxes are one object. Its box and
its mask are means, weighted by score (Solovyev et al. 2021, weighted boxes fusion); its score is
the mean over all views, so an object that only one view shows becomes unlikely. Label maps are
decided by the mean of the views' probabilities.

n objects, M side of a mask
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.data.photo import Pixels
from pipeline.evaluation.objects import Floats, Objects, interpolation_weights, select_objects

FindObjects = Callable[[Pixels, float], Objects]
"""Finds the objects of a photo at a multiple of the model's test size."""
FindProbs = Callable[[Pixels, float], Floats]
"""Computes the class probabilities (K, H, W) of a photo, likewise."""

_SAME_IOU = 0.55
"""Overlap from which boxes of two views are one object (weighted boxes fusion's default)."""


@dataclass(slots=True)
class _Cluster:
    """The members of an object, at most one of each view; the first has the highest score."""

    category_index: int
    members: list[int] = field(default_factory=list)
    views: set[int] = field(default_factory=set)


def find_merged_objects(
    find: FindObjects, pixels: Pixels, *, scales: Sequence[float], flip: bool
) -> Objects:
    """Find the objects of a photo in several views, and merge them.

    Args:
        find: finds the objects of one view.
        pixels: (H, W, 3) RGB.
        scales: factors of the model's own test size.
        flip: also predict the mirror image at each scale.
    """
    views = _list_views(scales, flip=flip)
    return merge_objects([_find_objects(find, pixels, *view) for view in views])


def find_mean_probs(
    find: FindProbs, pixels: Pixels, *, scales: Sequence[float], flip: bool
) -> Floats:
    """Compute the mean of several views' class probabilities; see `find_merged_objects`."""
    views = _list_views(scales, flip=flip)
    total = sum(_find_probs(find, pixels, *view) for view in views)
    mean: Floats = np.asarray(total, dtype=np.float32) / np.float32(len(views))
    return mean


def _list_views(scales: Sequence[float], *, flip: bool) -> list[tuple[float, bool]]:
    return [(scale, mirrored) for scale in scales for mirrored in (False, True)[: 1 + flip]]


def merge_objects(views: Sequence[Objects]) -> Objects:
    """Merge the objects of several views of one photo, best first; at most as many as one has."""
    view_index = np.repeat(np.arange(len(views)), [len(each.scores) for each in views])
    every = Objects(*(np.concatenate(fields) for fields in zip(*views, strict=True)))
    clusters = _find_clusters(every, view_index)
    if not clusters:
        return every
    merged = Objects(
        *(
            np.stack(fields)
            for fields in zip(*_merge_clusters(every, clusters, len(views)), strict=True)
        )
    )
    most = max(len(each.scores) for each in views)
    return select_objects(merged, np.argsort(-merged.scores, kind="stable")[:most])


def _find_probs(find: FindProbs, pixels: Pixels, scale: float, mirrored: bool) -> Floats:  # noqa: FBT001
    probs = find(_mirror(pixels) if mirrored else pixels, scale)
    return probs[..., ::-1] if mirrored else probs


def _find_objects(find: FindObjects, pixels: Pixels, scale: float, mirrored: bool) -> Objects:  # noqa: FBT001
    if not mirrored:
        return find(pixels, scale)
    found = find(_mirror(pixels), scale)
    boxes = found.boxes_xyxy[:, [2, 1, 0, 3]].copy()
    boxes[:, 0::2] = pixels.shape[1] - boxes[:, 0::2]
    return found._replace(boxes_xyxy=boxes, mask_probs=found.mask_probs[..., ::-1])


def _mirror(pixels: Pixels) -> Pixels:
    return np.ascontiguousarray(pixels[:, ::-1])


def _find_clusters(every: Objects, view_index: np.ndarray) -> list[_Cluster]:
    clusters: list[_Cluster] = []
    for index in np.argsort(-every.scores, kind="stable").tolist():
        category, view = int(every.category_index[index]), int(view_index[index])
        near = [
            each
            for each in clusters
            if each.category_index == category
            and view not in each.views
            and _iou(every.boxes_xyxy[index], every.boxes_xyxy[each.members[0]]) >= _SAME_IOU
        ]
        if near:
            firsts = [
                _iou(every.boxes_xyxy[index], every.boxes_xyxy[each.members[0]]) for each in near
            ]
            chosen = near[int(np.argmax(firsts))]
        else:
            chosen = _Cluster(category)
            clusters.append(chosen)
        chosen.members.append(index)
        chosen.views.add(view)
    return clusters


def _merge_clusters(
    every: Objects, clusters: Sequence[_Cluster], num_views: int
) -> Iterator[tuple[Floats, np.float32, int, Floats]]:
    for cluster in clusters:
        scores = every.scores[cluster.members].astype(np.float64)
        weights = scores / max(scores.sum(), 1e-12)
        boxes = every.boxes_xyxy[cluster.members]
        box = (weights[:, None] * boxes).sum(axis=0)
        probs = sum(
            weight * _move_mask(every.mask_probs[index], every.boxes_xyxy[index], box)
            for weight, index in zip(weights, cluster.members, strict=True)
        )
        yield (
            box.astype(np.float32),
            np.float32(scores.sum() / num_views),
            cluster.category_index,
            np.asarray(probs, dtype=np.float32),
        )


def _move_mask(probs: Floats, box: np.ndarray, to: np.ndarray) -> np.ndarray:
    """Sample a mask over its box on the grid of another box; 0 outside its own."""
    side = len(probs)
    centers = (np.arange(side) + 0.5) / side
    weights = []
    for axis in (0, 1):
        extent = max(float(box[axis + 2] - box[axis]), 1e-6)
        at = to[axis] + centers * (to[axis + 2] - to[axis])
        weights.append(interpolation_weights((at - box[axis]) / extent * side - 0.5, side))
    moved: np.ndarray = weights[1] @ probs @ weights[0].T
    return moved


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    common = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - common
    return float(common / max(union, 1e-12))
