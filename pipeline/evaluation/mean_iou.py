"""Mean IoU of label maps, from a confusion matrix that is summed over images and workers.

Void pixels of the truth are not counted, and the mean is over the classes that the truth has.
cityscapesScripts counts a class that only the predictions have as 0; a notice then gives its mean.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DatasetError
from pipeline.text import format_names

VOID = 255
"""Ignored in a truth; no class in a prediction."""

LabelMap = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class MeanIou:
    """IoU of a split, 0 to 1; NaN for classes that the truth does not have."""

    miou: float
    per_class: dict[str, float]
    """IoU by class name, in the order of class indices."""
    pixels: dict[str, int]
    """Pixels of the truth by class name."""
    images: int
    notices: tuple[str, ...] = ()


def count_pixels(truth: LabelMap, prediction: LabelMap, *, num_classes: int) -> NDArray[np.int64]:
    """Count the pixels of one image by true and predicted class.

    Args:
        truth: (H, W) 0 to num_classes - 1, and 255 for void.
        prediction: (H, W) the same; 255 means no class.
        num_classes: at most 255.

    Returns:
        (num_classes, num_classes + 1) true class, predicted class; the last column is no class. Add
        the matrices of all images.

    Raises:
        DatasetError: a value is not a class or void, or the sizes differ.
    """
    check_labels(truth, prediction, num_classes=num_classes)
    pairs = truth.astype(np.uint16) * (VOID + 1) + prediction
    counts = np.bincount(pairs.ravel(), minlength=(VOID + 1) ** 2).reshape(VOID + 1, VOID + 1)
    return counts[:num_classes, [*range(num_classes), VOID]]


def mean_iou(counts: NDArray[np.int64], *, names: Sequence[str], images: int) -> MeanIou:
    """Turn the sum of all images' confusion matrices into IoU.

    Args:
        counts: (K, K + 1) from `count_pixels`.
        names: of the classes.
        images: number of images.
    """
    hits = np.diagonal(counts)
    labeled = counts.sum(axis=1)
    predicted = counts[:, :-1].sum(axis=0)
    union = labeled + predicted - hits
    iou = [
        int(hit) / int(total) if pixels else math.nan
        for hit, total, pixels in zip(hits, union, labeled, strict=True)
    ]
    known = [value for value in iou if not math.isnan(value)]
    miou = sum(known) / len(known) if known else math.nan
    return MeanIou(
        miou=miou,
        per_class=dict(zip(names, iou, strict=True)),
        pixels=dict(zip(names, map(int, labeled), strict=True)),
        images=images,
        notices=_collect_notices(counts, names, known),
    )


def find_labels(labels: LabelMap) -> NDArray[np.int64]:
    """List the values in a label map, sorted."""
    found = np.zeros(VOID + 1, np.bool_)
    found[labels] = True
    return np.flatnonzero(found)


def check_labels(truth: LabelMap, prediction: LabelMap, *, num_classes: int) -> None:
    """Check that two label maps can be compared.

    Raises:
        DatasetError: a value is not a class or void, or the sizes differ.
    """
    if truth.shape != prediction.shape:
        raise DatasetError(
            f"a prediction of {prediction.shape} pixels for a truth of {truth.shape}: both must "
            "have the size of the original image"
        )
    for labels, which in ((truth, "truth"), (prediction, "prediction")):
        present = find_labels(labels)
        unknown = present[(present >= num_classes) & (present != VOID)]
        if unknown.size:
            values = ", ".join(map(str, unknown[:5]))
            raise DatasetError(
                f"a {which} holds {values}: classes are 0 to {num_classes - 1}, {VOID} is void"
            )


def _collect_notices(
    counts: NDArray[np.int64], names: Sequence[str], known: Sequence[float]
) -> tuple[str, ...]:
    notices = []
    unlabeled = int(counts[:, -1].sum())
    if unlabeled:
        notices.append(
            f"{unlabeled} of {counts.sum()} pixels have no class in the predictions (wrong)"
        )
    absent = counts.sum(axis=1) == 0
    missing = [name for name, is_absent in zip(names, absent, strict=True) if is_absent]
    predicted_only = [
        name
        for name, is_absent, pixels in zip(names, absent, counts[:, :-1].sum(axis=0), strict=True)
        if is_absent and pixels
    ]
    if predicted_only and known:
        lower = sum(known) / (len(known) + len(predicted_only))
        notices.append(
            f"{', '.join(predicted_only)}: predicted but not in the truth, so not in the mean; "
            f"cityscapesScripts counts such classes as 0, for a mean of {lower:.4f}"
        )
    if missing:
        notices.append(
            f"the truth has no pixel of {len(missing)} of {len(names)} classes, which are not in "
            f"the mean: {format_names(missing)}"
        )
    if len(known) == 1 and len(names) > 1:
        notices.append(
            "the truth has a single class, so a prediction of nothing else is perfect; "
            f"{VOID} is void, also in masks of 0 and {VOID}"
        )
    return tuple(notices)
