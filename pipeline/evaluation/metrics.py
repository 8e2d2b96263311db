"""Mask, box and boundary AP of COCO-style detections.

vernier gives the numbers. Mask and box AP are those of pycocotools, which defines them, and
boundary AP those of the official boundary-iou-api, to the last bit: tests hold it to them. It takes
a small part of their time (docs/metrics.md).

Boundary AP (Cheng et al. 2021): the overlap of a pair is the lesser of mask IoU and the IoU of the
two bands inside the outlines (bands.py). Crowds are compared by mask only.
"""

import contextlib
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import vernier
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

from pipeline.evaluation.bands import COCO_DILATION_RATIO, about_thin, check_ratio
from pipeline.evaluation.coco_files import CheckedFiles, Entry, check, read_json

MetricName = Literal["segm", "bbox", "boundary"]

METRIC_PREFIX: Mapping[MetricName, str] = {"segm": "mask", "bbox": "box", "boundary": "boundary"}
"""What a tracker calls each."""

_COCO_NAMES = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "APs",
    "ap_medium": "APm",
    "ap_large": "APl",
    "ar_1": "AR1",
    "ar_10": "AR10",
    "ar_100": "AR100",
    "ar_small": "ARs",
    "ar_medium": "ARm",
    "ar_large": "ARl",
}
"""The twelve numbers in the order in which both evaluators give them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metrics:
    """The numbers of one metric, 0 to 1; NaN where the truth has no such objects."""

    metric: MetricName
    ap: float
    """Mean over IoU .50 to .95 and all categories."""
    ap50: float
    ap75: float
    ap_small: float
    """Objects below 32 x 32 pixels."""
    ap_medium: float
    ap_large: float
    """Objects from 96 x 96 pixels on."""
    ar_1: float
    """Recall with one detection for each image and category."""
    ar_10: float
    ar_100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    per_category: dict[str, float]
    """AP by the category's name, in the order of category ids."""
    objects: dict[str, int]
    """Annotations by the category's name, crowds left out."""
    images: int
    annotations: int
    detections: int
    engine: str
    """Which program gave the numbers, with its version."""
    dilation_ratio: float = COCO_DILATION_RATIO
    """The band of boundary AP, in image diagonals."""
    notices: tuple[str, ...] = ()

    @property
    def prefix(self) -> str:
        """What a tracker calls the metric: mask, box or boundary."""
        return METRIC_PREFIX[self.metric]

    def by_coco_name(self) -> dict[str, float]:
        """Give the twelve numbers as COCO calls them: AP, AP50, AP75, APs, ..., AR100, ..."""
        return {name: getattr(self, key) for key, name in _COCO_NAMES.items()}

    def flat(self) -> dict[str, float]:
        """Give the twelve numbers as a tracker calls them: mask_ap, ..., mask_ap_small, ..."""
        values = (getattr(self, key) for key in _COCO_NAMES)
        return dict(zip(flat_names((self.metric,)), values, strict=True))


def flat_names(metrics: Sequence[MetricName]) -> list[str]:
    """Name the twelve numbers of each metric as `Metrics.flat` does."""
    return [f"{METRIC_PREFIX[metric]}_{key}" for metric in metrics for key in _COCO_NAMES]


def evaluate_detections(
    truth: str | Mapping[str, Any],
    detections: str | Sequence[Mapping[str, Any]],
    *,
    metric: MetricName,
    dilation_ratio: float = COCO_DILATION_RATIO,
) -> Metrics:
    """Measure detections against a truth, both in COCO's layout, as values or as paths or URIs.

    With "segm" and "boundary" a detection counts as small, medium or large by its mask, also where
    the results carry a bbox (pycocotools' own loader takes the box's area then).

    Args:
        truth: what a COCO annotation file holds.
        detections: what a COCO results file holds.
        metric: mask, box or boundary AP.
        dilation_ratio: the band of boundary AP, in image diagonals.

    Raises:
        RecipeError: the ratio is not between 0 and 1.
        StorageError: a file cannot be read.
        DatasetError: everything that is wrong with the two, in one message.
    """
    return evaluate_metrics(truth, detections, metrics=(metric,), dilation_ratio=dilation_ratio)[
        metric
    ]


def evaluate_metrics(
    truth: str | Mapping[str, Any],
    detections: str | Sequence[Mapping[str, Any]],
    *,
    metrics: Sequence[MetricName],
    dilation_ratio: float = COCO_DILATION_RATIO,
) -> dict[MetricName, Metrics]:
    """Measure several metrics at once; files are read and checked once.

    Raises:
        RecipeError: the ratio is not between 0 and 1.
        StorageError: a file cannot be read.
        DatasetError: everything that is wrong with the two, in one message.
    """
    check_ratio(dilation_ratio)
    files = check(
        read_json(truth) if isinstance(truth, str) else truth,
        read_json(detections) if isinstance(detections, str) else detections,
        masks=any(metric != "bbox" for metric in metrics),
        boxes="bbox" in metrics,
        names=(
            truth if isinstance(truth, str) else "truth",
            detections if isinstance(detections, str) else "detections",
        ),
    )
    return {metric: _measure(files, metric=metric, ratio=dilation_ratio) for metric in metrics}


def boxed(entries: list[Entry]) -> list[Entry]:
    """Copy entries (the evaluators write into them), each with the bbox that vernier insists on."""
    if not entries or "segmentation" not in entries[0]:
        return [dict(entry) for entry in entries]
    boxes = mask_api.toBbox([entry["segmentation"] for entry in entries]).tolist()
    return [{"bbox": box} | entry for entry, box in zip(entries, boxes, strict=True)]


def _measure(files: CheckedFiles, *, metric: MetricName, ratio: float) -> Metrics:
    names = {entry["id"]: entry["name"] for entry in files.categories}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = _as_coco(files, boxed(files.annotations))
        found = _as_coco(
            files, boxed([_with_area(entry, metric=metric) for entry in files.detections])
        )
        run = vernier.COCOeval(truth, found, metric, dilation_ratio=ratio)
        run.evaluate()
        run.accumulate()
        run.summarize()
    # IoU, recall, category, size, detections each image: all sizes, 100 detections.
    precision = np.asarray(run.eval["precision"])[:, :, :, 0, -1]
    counts = Counter(
        names[entry["category_id"]] for entry in files.annotations if not entry["iscrowd"]
    )
    notices = files.notices
    if metric == "boundary":
        notices += about_thin(files, dilation_ratio=ratio)
    return Metrics(
        metric=metric,
        **dict(zip(_COCO_NAMES, map(_or_nan, run.stats), strict=True)),
        per_category={
            names[key]: _mean_known(precision[:, :, place])
            for place, key in enumerate(sorted(names))
        },
        objects={names[key]: counts[names[key]] for key in sorted(names)},
        images=len(files.images),
        annotations=len(files.annotations),
        detections=len(files.detections),
        engine=f"vernier {version('vernier')}",
        dilation_ratio=ratio,
        notices=notices,
    )


def _as_coco(files: CheckedFiles, annotations: list[Entry]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": files.images,
        "categories": files.categories,
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _with_area(entry: Entry, *, metric: MetricName) -> Entry:
    """Give a detection the area by which it counts as small, medium or large."""
    area = entry["bbox"][2] * entry["bbox"][3] if metric == "bbox" else entry["mask_area_px"]
    return entry | {"area": area, "iscrowd": 0}


def _or_nan(value: float) -> float:
    """Both evaluators say -1 for "no such objects"."""
    return float(value) if value > -1 else math.nan


def _mean_known(values: np.ndarray[Any, Any]) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else math.nan
