"""The boundary F-score of label maps: how much of the outlines lies within r pixels of the other's.

The rule is that of GSCNN's evaluation (Takikawa et al. 2019), which published numbers follow: for
each image and class the outlines of both masks, void taken out of both; precision is the share of
the prediction's outline pixels that the truth's come within r of, recall the other way round, and
F their harmonic mean; a class's score is its mean over images, the score the mean over classes. An
image in which a class is in neither map counts as F = 1 there ("one"), which lifts rare classes;
"skip" leaves such images out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.mean_iou import VOID, LabelMap, check_labels, values_of

RADII_PX = (3, 5, 9, 12)
"""Those of the paper's Table 5."""

Absent = Literal["one", "skip"]

Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class BoundaryF:
    """The numbers of a split, 0 to 1, each for every radius."""

    radii_px: tuple[int, ...]
    f: tuple[float, ...]
    """Mean over classes; NaN where no class is known."""
    per_class: dict[str, tuple[float, ...]]
    """By the class's name, in the order of class indexes; NaN for what is nowhere, with "skip"."""
    images_with: dict[str, int]
    """Images that have outlines of the class in the truth or the prediction, by its name."""
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
    """Count the outline pixels of one image, and those that the other outline comes near.

    Args:
        truth: (H, W) 0 to num_classes - 1, and 255 for void.
        prediction: (H, W) the same; 255 is no class.
        num_classes: at most 255.
        radii_px: Euclidean distances that still count as near.

    Returns:
        (num_classes, 1 + len(radii_px), 2): the outline's pixels, then those matched at each
        radius; of the prediction, of the truth.

    Raises:
        DatasetError: a value is outside the table, or the sizes differ.
    """
    check_labels(truth, prediction, num_classes=num_classes)
    prediction = np.where(truth == VOID, np.uint8(VOID), prediction)
    counts = np.zeros((num_classes, 1 + len(radii_px), 2), np.int64)
    for index in np.union1d(values_of(truth), values_of(prediction)):
        if index == VOID:
            continue
        window = _window((truth == index) | (prediction == index))
        outlines = _outline(prediction[window] == index), _outline(truth[window] == index)
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
    """Turn the counts of all images into F-scores; their order changes nothing.

    Args:
        counts: what `match_boundaries` gives for each.
        names: of the classes.
        radii_px: what it was given.
        absent: what an image counts in which a class has no outline at all: F = 1, or nothing.
    """
    table = np.array(counts, np.int64).reshape(-1, len(names), 1 + len(radii_px), 2)
    f = _f_scores(table)
    nowhere = (table[:, :, 0] == 0).all(axis=-1)
    f[nowhere] = 1.0 if absent == "one" else math.nan
    scores = np.array(
        [[_mean_known(f[:, k, r]) for r in range(f.shape[2])] for k in range(f.shape[1])]
    )
    return BoundaryF(
        radii_px=tuple(radii_px),
        f=tuple(_mean_known(column) for column in scores.T),
        per_class={name: tuple(map(float, row)) for name, row in zip(names, scores, strict=True)},
        images_with=dict(zip(names, map(int, (~nowhere).sum(axis=0)), strict=True)),
        images=len(table),
        absent=absent,
    )


def _f_scores(table: NDArray[np.int64]) -> NDArray[np.float64]:
    """Give F (I, K, R); 0 where one side has no outline or nothing matches."""
    outline = table[:, :, :1].astype(np.float64)
    share = table[:, :, 1:] / np.maximum(outline, 1)
    precision, recall = share[..., 0], share[..., 1]
    total = precision + recall
    f: NDArray[np.float64] = np.where(
        total > 0, 2 * precision * recall / np.maximum(total, 1e-300), 0
    )
    return f


def _mean_known(values: NDArray[np.float64]) -> float:
    """Average what is no NaN; fsum rounds once, so the order changes nothing."""
    known = values[~np.isnan(values)]
    return math.fsum(known) / len(known) if len(known) else math.nan


def _outline(mask: Mask) -> Mask:
    """Mark pixels that differ from the next one to the right, below, or below to the right.

    The last row looks to the right only, the last column down only, the corner nowhere: the image's
    border is no outline (GSCNN: seg2bmap).
    """
    outline = np.zeros_like(mask)
    here = mask[:-1, :-1]
    outline[:-1, :-1] = (here ^ mask[:-1, 1:]) | (here ^ mask[1:, :-1]) | (here ^ mask[1:, 1:])
    outline[-1, :-1] = mask[-1, :-1] ^ mask[-1, 1:]
    outline[:-1, -1] = mask[:-1, -1] ^ mask[1:, -1]
    return outline


def _distance_to(outline: Mask) -> NDArray[np.float32]:
    """Give the Euclidean distance of each pixel to the nearest one of the outline, in pixels."""
    away = np.logical_not(outline).view(np.uint8)
    return cv2.distanceTransform(away, cv2.DIST_L2, cv2.DIST_MASK_PRECISE).astype(np.float32)


def _window(mask: Mask) -> tuple[slice, slice]:
    """Give the smallest window around a mask, and a pixel more: outlines lie there too."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return (
        slice(max(rows[0] - 1, 0), rows[-1] + 2),
        slice(max(columns[0] - 1, 0), columns[-1] + 2),
    )
