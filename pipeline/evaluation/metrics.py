"""Mask, box and boundary AP of detections, under COCO's or LVIS's rules."""

import contextlib
import gc
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pipeline.evaluation.ap_engine import ENGINE, MetricName, average_valid, measure_coco
from pipeline.evaluation.bands import COCO_DILATION_RATIO, check_ratio, warn_thin_objects
from pipeline.evaluation.coco_files import CheckedFiles, check_files, read_json
from pipeline.evaluation.lvis import drop_unknown_categories, measure_lvis
from pipeline.evaluation.predicted_files import read_predicted

Rules = Literal["coco", "lvis"]

METRIC_PREFIX: Mapping[MetricName, str] = {"segm": "mask", "bbox": "box", "boundary": "boundary"}
"""Prefix of the names in trackers and tables."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metrics:
    """Scores of one metric, 0 to 1; NaN if the truth has no such objects."""

    published_names: ClassVar[Mapping[str, str]]
    """Name of each score in its defining program, in the order of that program."""

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
    ar_small: float
    ar_medium: float
    ar_large: float
    per_category: dict[str, float]
    """AP by category name, in the order of category ids."""
    objects: dict[str, int]
    """Number of annotations by category name; with COCO's rules without crowds."""
    images: int
    annotations: int
    detections: int
    engine: str = ENGINE
    """Program that computed the scores, with its version."""
    dilation_ratio: float = COCO_DILATION_RATIO
    """Width of the boundary band, in image diagonals."""
    notices: tuple[str, ...] = ()

    @property
    def prefix(self) -> str:
        """Prefix of the names in trackers and tables: mask, box or boundary."""
        return METRIC_PREFIX[self.metric]

    def by_published_name(self) -> dict[str, float]:
        """Return the scores under their published names: AP, AP50, AP75, APs, ..."""
        return {name: getattr(self, key) for key, name in self.published_names.items()}

    def flat(self) -> dict[str, float]:
        """Return the scores under their names in trackers: mask_ap, ..., mask_ap_small, ..."""
        return {f"{self.prefix}_{key}": getattr(self, key) for key in self.published_names}


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoMetrics(Metrics):
    """Scores under COCO's rules."""

    published_names: ClassVar[Mapping[str, str]] = {
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

    ar_1: float
    """Recall with one detection per image and category."""
    ar_10: float
    ar_100: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LvisMetrics(Metrics):
    """Scores under LVIS's rules."""

    published_names: ClassVar[Mapping[str, str]] = {
        "ap": "AP",
        "ap50": "AP50",
        "ap75": "AP75",
        "ap_small": "APs",
        "ap_medium": "APm",
        "ap_large": "APl",
        "ap_rare": "APr",
        "ap_common": "APc",
        "ap_frequent": "APf",
        "ar_300": "AR@300",
        "ar_small": "ARs@300",
        "ar_medium": "ARm@300",
        "ar_large": "ARl@300",
    }

    ap_rare: float
    """Categories in at most 10 training images, by the frequency in the truth."""
    ap_common: float
    """Categories in at most 100 training images."""
    ap_frequent: float
    ar_300: float
    """Recall with 300 detections per image."""


def coco_names(metrics: Sequence[MetricName]) -> list[str]:
    """List the names of the twelve COCO scores of each metric, as in `Metrics.flat`."""
    return [f"{METRIC_PREFIX[m]}_{key}" for m in metrics for key in CocoMetrics.published_names]


def evaluate_detections(
    truth: str | Mapping[str, Any],
    detections: str | Sequence[Mapping[str, Any]],
    *,
    metric: MetricName,
    rules: Rules = "coco",
    dilation_ratio: float = COCO_DILATION_RATIO,
) -> Metrics:
    """Compute one metric; see `evaluate_metrics`."""
    return evaluate_metrics(
        truth, detections, metrics=(metric,), rules=rules, dilation_ratio=dilation_ratio
    )[metric]


def evaluate_metrics(
    truth: str | Mapping[str, Any],
    detections: str | Sequence[Mapping[str, Any]],
    *,
    metrics: Sequence[MetricName],
    rules: Rules = "coco",
    dilation_ratio: float = COCO_DILATION_RATIO,
) -> dict[MetricName, Metrics]:
    """Compute mask, box or boundary AP of detections.

    For "segm" and "boundary", the mask's area decides whether a detection is small, medium or
    large, even if it also has a bbox. pycocotools and lvis then use the area of the bbox, which is
    why detectron2 removes it.

    Args:
        truth: content, path or URI of a COCO annotation file. Under LVIS's rules its images have
            neg_category_ids and not_exhaustive_category_ids, and its categories a frequency.
        detections: content, path or URI of a COCO results file.
        metrics: to compute.
        rules: COCO's or LVIS's.
        dilation_ratio: width of the boundary band, in image diagonals.

    Raises:
        RecipeError: the ratio is not between 0 and 1.
        StorageError: a file cannot be read.
        DatasetError: all problems of both files.
    """
    check_ratio(dilation_ratio)
    with _pause_garbage_collector():
        return _evaluate(truth, detections, metrics=metrics, rules=rules, ratio=dilation_ratio)


@contextlib.contextmanager
def _pause_garbage_collector() -> Iterator[None]:
    """Pause the search for reference cycles: entries hold none, and it walks all of them often."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _evaluate(
    truth: str | Mapping[str, Any],
    detections: str | Sequence[Mapping[str, Any]],
    *,
    metrics: Sequence[MetricName],
    rules: Rules,
    ratio: float,
) -> dict[MetricName, Metrics]:
    content: Any = read_json(truth) if isinstance(truth, str) else truth
    rows = read_json(detections) if isinstance(detections, str) else detections
    file = detections if isinstance(detections, str) else "detections"
    rows, notices = read_predicted(rows, content, name=file)
    if rules == "lvis":
        rows, more = drop_unknown_categories(rows, content)
        notices += more
    files = check_files(
        content,
        rows,
        masks=any(metric != "bbox" for metric in metrics),
        boxes="bbox" in metrics,
        federated=rules == "lvis",
        names=(
            truth if isinstance(truth, str) else "truth",
            file,
        ),
    )
    return {
        metric: _measure(files, content, notices, metric=metric, rules=rules, ratio=ratio)
        for metric in metrics
    }


def _measure(
    files: CheckedFiles,
    truth: Mapping[str, Any],
    notices: tuple[str, ...],
    *,
    metric: MetricName,
    rules: Rules,
    ratio: float,
) -> Metrics:
    is_lvis = rules == "lvis"
    kind: type[Metrics] = LvisMetrics if is_lvis else CocoMetrics
    scores = (
        measure_lvis(files, truth, metric=metric, dilation_ratio=ratio)
        if is_lvis
        else measure_coco(files, metric=metric, dilation_ratio=ratio)
    )
    thin = warn_thin_objects(files, dilation_ratio=ratio) if metric == "boundary" else ()
    names = {entry["id"]: entry["name"] for entry in files.categories}
    ids = sorted(names)
    counts = Counter(entry["category_id"] for entry in scores.objects)
    named: dict[str, Any] = dict(zip(kind.published_names, scores.values, strict=True))
    return kind(
        **named,
        metric=metric,
        per_category={
            names[key]: average_valid(scores.precision[:, :, index])
            for index, key in enumerate(ids)
        },
        objects={names[key]: counts[key] for key in ids},
        images=len(files.images),
        annotations=len(files.annotations),
        detections=len(files.detections),
        dilation_ratio=ratio,
        notices=(*files.notices, *notices, *scores.notices, *thin),
    )
