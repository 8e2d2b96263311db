"""The boundary F-score of label maps.

Defined as in GSCNN's evaluation (Takikawa et al. 2019), which published numbers follow. Void is
removed from both maps. Per image and class, precision is the share of the prediction's outline
pixels within r pixels of the truth's outline, recall the share of the truth's outline pixels within
r pixels of the prediction's, and F their harmonic mean. A class's score is its mean over images,
the overall score the mean over classes. An image in which neither map has the class counts as F = 1
("one"), which raises the score of rare classes, or is left out ("skip").
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.bands import crop_slices
from pipeline.evaluation.mean_iou import VOID, LabelMap, check_labels, find_labels
from pipeline.text import format_names

RADII_PX = (3, 5, 9, 12)
"""From Table 5 of the paper."""

Absent = Literal["one", "skip"]

TRUTH = 1
"""The truth's place in the last axis of `match_boundaries`."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class BoundaryF:
    """F-scores of a split, 0 to 1, one per radius."""

    radii_px: tuple[int, ...]
    f: tuple[float, ...]
    """Mean over classes; NaN if every class is NaN."""
    per_class: dict[str, tuple[float, ...]]
    """By class name, in the order of class indices; NaN for a class in no image, with "skip"."""
    images_with: dict[str, int]
    """Number of images with an outline of the class in either map, by class name."""
    images: int
    absent: Absent
    notices: tuple[str, ...] = ()


def match_boundaries(
    truth: LabelMap,
    prediction: LabelMap,
    *,
    num_classes: int,
    radii_px: Sequence[int] = RADII_PX,
) -> NDArray[np.int64]:
    """Count the outline pixels of one image, and those close to the other map's outline.

    Args:
        truth: (H, W) 0 to num_classes - 1, and 255 for void.
        prediction: (H, W) the same; 255 means no class.
        num_classes: at most 255.
        radii_px: largest Euclidean distances of a match.

    Returns:
        (num_classes, 1 + len(radii_px), 2): outline pixels, then pixels matched at each radius;
        of the prediction and of the truth.

    Raises:
        DatasetError: a value is not a class or void, or the sizes differ.
    """
    check_labels(truth, prediction, num_classes=num_classes)
    prediction = np.where(truth == VOID, np.uint8(VOID), prediction)
    counts = np.zeros((num_classes, 1 + len(radii_px), 2), np.int64)
    for index in np.union1d(find_labels(truth), find_labels(prediction)):
        if index == VOID:
            continue
        # An outline reaches one pixel beyond its mask.
        crop = crop_slices((truth == index) | (prediction == index), margin_px=1)
        outlines = _find_outline(prediction[crop] == index), _find_outline(truth[crop] == index)
        for side in (0, 1):
            counts[index, 0, side] = np.count_nonzero(outlines[side])
            if counts[index, 0, side] and outlines[1 - side].any():
                distance = _distance_to(outlines[1 - side])[outlines[side]]
                counts[index, 1:, side] = [np.count_nonzero(distance <= r) for r in radii_px]
    return counts


def boundary_f(
    counts: Sequence[NDArray[np.int64]],
    *,
    names: Sequence[str],
    radii_px: Sequence[int] = RADII_PX,
    absent: Absent = "one",
) -> BoundaryF:
    """Turn the counts of all images, in any order, into F-scores.

    Args:
        counts: from `match_boundaries`, one per image.
        names: of the classes.
        radii_px: of `match_boundaries`.
        absent: whether an image without an outline of a class counts as F = 1 or is left out.
    """
    table = np.array(counts, np.int64).reshape(-1, len(names), 1 + len(radii_px), 2)
    f = _f_scores(table)
    nowhere = (table[:, :, 0] == 0).all(axis=-1)
    f[nowhere] = 1.0 if absent == "one" else math.nan
    scores = np.array(
        [[_nan_mean(f[:, k, r]) for r in range(f.shape[2])] for k in range(f.shape[1])]
    )
    missing = [
        name
        for name, outline in zip(names, table[:, :, 0, TRUTH].sum(axis=0), strict=True)
        if not outline
    ]
    return BoundaryF(
        radii_px=tuple(radii_px),
        f=tuple(_nan_mean(column) for column in scores.T),
        per_class={name: tuple(map(float, row)) for name, row in zip(names, scores, strict=True)},
        images_with=dict(zip(names, map(int, (~nowhere).sum(axis=0)), strict=True)),
        images=len(table),
        absent=absent,
        notices=_note_missing(missing, names=names, absent=absent),
    )


def _note_missing(
    missing: Sequence[str], *, names: Sequence[str], absent: Absent
) -> tuple[str, ...]:
    if not missing:
        return ()
    counted = "counts as F = 1" if absent == "one" else "is left out"
    return (
        f"the truth has no outline of {len(missing)} of {len(names)} classes; where the prediction "
        f"has none either, this {counted}: {format_names(missing)}",
    )


def _f_scores(table: NDArray[np.int64]) -> NDArray[np.float64]:
    """Compute F (I, K, R); 0 where one map has no outline or nothing matches."""
    outline = table[:, :, :1].astype(np.float64)
    share = table[:, :, 1:] / np.maximum(outline, 1)
    precision, recall = share[..., 0], share[..., 1]
    total = precision + recall
    f: NDArray[np.float64] = np.where(
        total > 0, 2 * precision * recall / np.maximum(total, 1e-300), 0
    )
    return f


def _nan_mean(values: NDArray[np.float64]) -> float:
    """Average all values but NaN; fsum rounds once, so their order does not matter."""
    known = values[~np.isnan(values)]
    return math.fsum(known) / len(known) if len(known) else math.nan


def _find_outline(mask: Mask) -> Mask:
    """Mark pixels that differ from the right, lower or lower right neighbor (GSCNN: seg2bmap).

    Neighbors beyond the image do not count: its border is not an outline.
    """
    outline = np.zeros_like(mask)
    here = mask[:-1, :-1]
    outline[:-1, :-1] = (here ^ mask[:-1, 1:]) | (here ^ mask[1:, :-1]) | (here ^ mask[1:, 1:])
    outline[-1, :-1] = mask[-1, :-1] ^ mask[-1, 1:]
    outline[:-1, -1] = mask[:-1, -1] ^ mask[1:, -1]
    return outline


def _distance_to(outline: Mask) -> NDArray[np.float32]:
    """Compute the Euclidean distance of each pixel to the outline, in pixels."""
    outside = np.logical_not(outline).view(np.uint8)
    return cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE).astype(np.float32)
