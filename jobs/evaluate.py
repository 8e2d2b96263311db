#!/usr/bin/env python
"""Measure what any model gave, from files: COCO, LVIS, Cityscapes instances, or label maps.

    python jobs/evaluate.py --truth instances.json --detections results.json --metric boundary
    python jobs/evaluate.py --truth lvis_v1_val.json --detections results.json --metric lvis-segm
    python jobs/evaluate.py --truth gtFine/val --detections out --metric cityscapes-instance
    python jobs/evaluate.py --truth gtFine/val --detections out --metric miou --truth-ids label

Needs no model and no Ray. Prints a table and, as the last line, RESULT {json} with its numbers.
"""

import math
import time
from typing import Any, Literal

from pipeline.cli import run_verb
from pipeline.errors import RecipeError
from pipeline.evaluation.bands import CITYSCAPES_DILATION_RATIO, COCO_DILATION_RATIO
from pipeline.evaluation.boundary_fscore import RADII_PX, Absent
from pipeline.evaluation.cityscapes_files import evaluate_cityscapes
from pipeline.evaluation.class_table import format_boundary_f, format_cityscapes, format_miou
from pipeline.evaluation.label_files import Ids, LabelFolders, evaluate_boundary_f, evaluate_miou
from pipeline.evaluation.lvis import LvisMetrics, evaluate_lvis
from pipeline.evaluation.metrics import MetricName, Metrics, evaluate_detections
from pipeline.evaluation.table import Categories, format_lvis, format_metrics

Metric = Literal[
    "segm",
    "bbox",
    "boundary",
    "lvis-segm",
    "lvis-bbox",
    "lvis-boundary",
    "cityscapes-instance",
    "miou",
    "boundary-f",
]

_OF_COCO: dict[Metric, MetricName] = {"segm": "segm", "bbox": "bbox", "boundary": "boundary"}

_OF_LVIS: dict[Metric, MetricName] = {
    "lvis-segm": "segm",
    "lvis-bbox": "bbox",
    "lvis-boundary": "boundary",
}

_BANDS: tuple[Metric, ...] = ("boundary", "lvis-boundary", "cityscapes-instance")
_LABELS: tuple[Metric, ...] = ("miou", "boundary-f")


def evaluate(  # noqa: PLR0913  each is a flag
    *,
    truth: str,
    detections: str,
    metric: Metric = "segm",
    categories: Categories = "extremes",
    dilation_ratio: float | None = None,
    classes: str | None = None,
    truth_ids: Ids | None = None,
    detections_ids: Ids | None = None,
    radii_px: tuple[int, ...] | None = None,
    absent: Absent | None = None,
) -> dict[str, Any]:
    """Measure what any model gave, from files: COCO, LVIS, Cityscapes instances, or label maps.

    Args:
        truth: COCO or LVIS annotation file; gtFine's folder of a split (gtFine/val); or a folder of
            label PNGs. A path or URI, as is the next.
        detections: COCO results file: a list of image_id, category_id, score, segmentation or bbox;
            a folder in Cityscapes' submission format: a txt for each frame with lines of mask path,
            class id, score; or a folder of predicted label PNGs.
        metric: segm and bbox are pycocotools' numbers, boundary those of boundary-iou-api, lvis-*
            those of the lvis package, cityscapes-instance those of cityscapesScripts (by mask and
            by boundary), miou the mean IoU of label maps, boundary-f their boundary F-score.
        categories: of COCO and LVIS, list the best and worst categories, all (then RESULT has them
            too), or none.
        dilation_ratio: width of the boundary's band in image diagonals; 0.02 for COCO and LVIS,
            0.005 for Cityscapes, unless said.
        classes: of label maps: cityscapes (unless said), bdd, or how many there are.
        truth_ids: label maps of the truth hold train ids (unless said) or Cityscapes' label ids.
        detections_ids: the same of the predicted ones.
        radii_px: of boundary-f: distances that count as near; 3 5 9 12 unless said.
        absent: of boundary-f: an image without a class counts as F = 1 (one, as in published
            numbers, unless said), or not at all (skip).
    """
    started = time.perf_counter()
    _refuse_idle(
        metric,
        {
            "--dilation-ratio": (dilation_ratio, _BANDS),
            "--classes": (classes, _LABELS),
            "--truth-ids": (truth_ids, _LABELS),
            "--detections-ids": (detections_ids, _LABELS),
            "--radii-px": (radii_px, ("boundary-f",)),
            "--absent": (absent, ("boundary-f",)),
        },
    )
    if metric in _LABELS:
        folders = LabelFolders(
            truth=truth,
            detections=detections,
            classes=classes or "cityscapes",
            truth_ids=truth_ids or "train",
            detections_ids=detections_ids or "train",
        )
        if metric == "miou":
            text, result = _miou(folders)
        else:
            text, result = _boundary_f(folders, tuple(radii_px or RADII_PX), absent or "one")
    elif metric == "cityscapes-instance":
        ratio = CITYSCAPES_DILATION_RATIO if dilation_ratio is None else dilation_ratio
        text, result = _cityscapes(truth, detections, ratio)
    else:
        ratio = COCO_DILATION_RATIO if dilation_ratio is None else dilation_ratio
        text, result = _annotations(truth, detections, metric, categories, ratio)
    print(text)
    seconds = round(time.perf_counter() - started, 3)
    return {"metric": metric, **_for_json(result), "seconds": seconds}


def _refuse_idle(metric: Metric, flags: dict[str, tuple[object, tuple[Metric, ...]]]) -> None:
    """Refuse flags that would change nothing."""
    idle = [
        f"{flag} is of --metric {' or '.join(metrics)}"
        for flag, (value, metrics) in flags.items()
        if value is not None and metric not in metrics
    ]
    if idle:
        raise RecipeError(f"--metric {metric} takes no such flag: {'; '.join(idle)}")


Report = tuple[str, dict[str, Any]]
"""What is printed, and what RESULT holds."""


def _annotations(
    truth: str, detections: str, metric: Metric, categories: Categories, ratio: float
) -> Report:
    measured: Metrics | LvisMetrics
    if metric in _OF_LVIS:
        measured = evaluate_lvis(truth, detections, metric=_OF_LVIS[metric], dilation_ratio=ratio)
        text, numbers = format_lvis(measured, categories=categories), measured.by_lvis_name()
    else:
        measured = evaluate_detections(
            truth, detections, metric=_OF_COCO[metric], dilation_ratio=ratio
        )
        text, numbers = format_metrics(measured, categories=categories), measured.by_coco_name()
    per_category = {"per_category": measured.per_category} if categories == "all" else {}
    return text, {
        **numbers,
        **per_category,
        "images": measured.images,
        "annotations": measured.annotations,
        "detections": measured.detections,
        "engine": measured.engine,
        "notices": list(measured.notices),
    }


def _cityscapes(truth: str, detections: str, ratio: float) -> Report:
    measured = evaluate_cityscapes(truth, detections, dilation_ratio=ratio)
    names = ("AP", "AP50", "boundary_AP", "boundary_AP50")
    return format_cityscapes(measured), {
        **dict(zip(names, (*measured.mask, *measured.boundary), strict=True)),
        "per_category": {
            name: dict(
                zip(
                    names,
                    (*measured.mask_by_class[name], *measured.boundary_by_class[name]),
                    strict=True,
                )
            )
            for name in measured.objects
        },
        "images": measured.frames,
        "detections": measured.detections,
        "notices": list(measured.notices),
    }


def _miou(folders: LabelFolders) -> Report:
    measured = evaluate_miou(folders)
    return format_miou(measured), {
        "mIoU": measured.miou,
        "per_category": measured.per_class,
        "images": measured.images,
        "notices": list(measured.notices),
    }


def _boundary_f(folders: LabelFolders, radii_px: tuple[int, ...], absent: Absent) -> Report:
    measured = evaluate_boundary_f(folders, radii_px=radii_px, absent=absent)
    names = [f"F_{radius}px" for radius in measured.radii_px]
    return format_boundary_f(measured), {
        **dict(zip(names, measured.f, strict=True)),
        "per_category": {
            name: dict(zip(names, scores, strict=True))
            for name, scores in measured.per_class.items()
        },
        "absent": measured.absent,
        "images": measured.images,
    }


def _for_json(value: Any) -> Any:  # noqa: ANN401  whatever RESULT holds
    """Say null where there is no number: JSON knows no NaN."""
    if isinstance(value, dict):
        return {name: _for_json(each) for name, each in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


if __name__ == "__main__":
    run_verb(evaluate)
