"""Mean IoU of label maps, from one table of pixel counts that adds up over images and workers.

Void pixels of the truth are dropped before anything is counted, and the mean is over the classes
that the truth has. cityscapesScripts counts a class that only the predictions have as 0; where
there is one, a notice gives that number too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DatasetError

VOID = 255
"""In a truth: nobody knows. In a prediction: no class."""

LabelMap = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class MeanIou:
    """The numbers of a split, 0 to 1; NaN where the truth has no such pixels."""

    miou: float
    per_class: dict[str, float]
    """IoU by the class's name, in the order of class indexes."""
    pixels: dict[str, int]
    """Of the truth, by the class's name."""
    images: int
    notices: tuple[str, ...] = ()


def count_pixels(truth: LabelMap, prediction: LabelMap, *, num_classes: int) -> NDArray[np.int64]:
    """Count the pixels of one image by what they are and what they were taken for.

    Args:
        truth: (H, W) 0 to num_classes - 1, and 255 for void.
        prediction: (H, W) the same; 255 is no class.
        num_classes: at most 255.

    Returns:
        (num_classes, num_classes + 1): true class, predicted class; the last column is no class.
        Tables of images are added.

    Raises:
        DatasetError: a value is outside the table, or the sizes differ.
    """
    check_labels(truth, prediction, num_classes=num_classes)
    pairs = truth.astype(np.uint16) * (VOID + 1) + prediction
    counts = np.bincount(pairs.ravel(), minlength=(VOID + 1) ** 2).reshape(VOID + 1, VOID + 1)
    return counts[:num_classes, [*range(num_classes), VOID]]


def mean_iou(counts: NDArray[np.int64], *, names: Sequence[str], images: int) -> MeanIou:
    """Turn the sum of all images' tables into IoU.

    Args:
        counts: (K, K + 1) as `count_pixels` gives them.
        names: of the classes.
        images: how many were counted.
    """
    hits = np.diagonal(counts)
    of_class = counts.sum(axis=1)
    taken = counts[:, :-1].sum(axis=0)
    union = of_class + taken - hits
    iou = [
        int(hit) / int(total) if pixels else math.nan
        for hit, total, pixels in zip(hits, union, of_class, strict=True)
    ]
    known = [value for value in iou if not math.isnan(value)]
    miou = sum(known) / len(known) if known else math.nan
    return MeanIou(
        miou=miou,
        per_class=dict(zip(names, iou, strict=True)),
        pixels=dict(zip(names, map(int, of_class), strict=True)),
        images=images,
        notices=_notices(counts, names, known),
    )


def values_of(labels: LabelMap) -> NDArray[np.int64]:
    """List the values that are in a label map, rising."""
    is_there = np.zeros(VOID + 1, np.bool_)
    is_there[labels] = True
    return np.flatnonzero(is_there)


def check_labels(truth: LabelMap, prediction: LabelMap, *, num_classes: int) -> None:
    """Refuse label maps that cannot be compared.

    Raises:
        DatasetError: a value is outside the table, or the sizes differ.
    """
    if truth.shape != prediction.shape:
        raise DatasetError(
            f"a prediction of {prediction.shape} pixels for a truth of {truth.shape}: both have "
            "the image's own size"
        )
    for labels, which in ((truth, "truth"), (prediction, "prediction")):
        present = values_of(labels)
        strange = present[(present >= num_classes) & (present != VOID)]
        if strange.size:
            values = ", ".join(map(str, strange[:5]))
            raise DatasetError(
                f"a {which} holds {values}: classes are 0 to {num_classes - 1}, {VOID} is void"
            )


def _notices(
    counts: NDArray[np.int64], names: Sequence[str], known: Sequence[float]
) -> tuple[str, ...]:
    notices = []
    unclassed = int(counts[:, -1].sum())
    if unclassed:
        notices.append(
            f"{unclassed} of {counts.sum()} pixels have no class in the predictions: all wrong"
        )
    absent = (counts.sum(axis=1) == 0) & (counts[:, :-1].sum(axis=0) > 0)
    invented = [name for name, is_one in zip(names, absent, strict=True) if is_one]
    if invented and known:
        lower = sum(known) / (len(known) + len(invented))
        notices.append(
            f"{', '.join(invented)}: predicted, but nowhere in the truth, so not in the mean; "
            f"cityscapesScripts counts such classes as 0 and gives {lower:.4f}"
        )
    return tuple(notices)
