#!/usr/bin/env python
"""Evaluate the predictions of any model from files: COCO, LVIS, Cityscapes or label maps.

    python jobs/evaluate.py --truth instances.json --detections results.json --metric boundary
    python jobs/evaluate.py --truth lvis_v1_val.json --detections results.json --metric lvis-segm
    python jobs/evaluate.py --truth gtFine/val --detections out --metric cityscapes-instance
    python jobs/evaluate.py --truth gtFine/val --detections out --metric miou --truth-ids label

Needs no model and no Ray. Prints a table, and RESULT {json} with the numbers as the last line.
"""

import math
import time
from typing import Any, Literal

from pipeline.cli import run_verb
from pipeline.errors import RecipeError
from pipeline.evaluation.ap_engine import MetricName
from pipeline.evaluation.bands import CITYSCAPES_DILATION_RATIO, COCO_DILATION_RATIO
from pipeline.evaluation.boundary_fscore import RADII_PX, Absent
from pipeline.evaluation.cityscapes_files import evaluate_cityscapes
from pipeline.evaluation.class_table import format_boundary_f, format_cityscapes, format_miou
from pipeline.evaluation.label_files import Ids, LabelFolders, evaluate_boundary_f, evaluate_miou
from pipeline.evaluation.metrics import Rules, evaluate_detections
from pipeline.evaluation.table import Categories, format_metrics

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

_AP_METRICS: dict[Metric, tuple[MetricName, Rules]] = {
    "segm": ("segm", "coco"),
    "bbox": ("bbox", "coco"),
    "boundary": ("boundary", "coco"),
    "lvis-segm": ("segm", "lvis"),
    "lvis-bbox": ("bbox", "lvis"),
    "lvis-boundary": ("boundary", "lvis"),
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
    """Evaluate the predictions of any model from files: COCO, LVIS, Cityscapes or label maps.

    Args:
        truth: COCO or LVIS annotation file, gtFine folder of a split (gtFine/val), or folder of
            label PNGs; a path or URI.
        detections: COCO results file (a list of image_id, category_id, score, segmentation or
            bbox), detections.json of jobs/predict.py, folder in Cityscapes' submission format (one
            txt per frame with lines of mask path, class id, score), or folder of predicted label
            PNGs; a path or URI.
        metric: segm and bbox as in pycocotools, boundary as in boundary-iou-api, lvis-* as in the
            lvis package, cityscapes-instance as in cityscapesScripts (by mask and by boundary);
            miou is the mean IoU of label maps, boundary-f their boundary F-score.
        categories: for COCO and LVIS, list the best and worst categories, all (also in RESULT), or
            none.
        dilation_ratio: width of the boundary band in image diagonals; default 0.02 for COCO and
            LVIS, 0.005 for Cityscapes.
        classes: of label maps: cityscapes (default), bdd, or the number of classes.
        truth_ids: whether label maps of the truth hold train ids (default) or Cityscapes' label
            ids.
        detections_ids: the same for predicted label maps.
        radii_px: for boundary-f, largest distances of a match; default 3 5 9 12.
        absent: for boundary-f, whether an image without a class counts as F = 1 (one, as in
            published numbers; default) or is left out (skip).
    """
    started = time.perf_counter()
    _refuse_unused(
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
            text, result = _measure_miou(folders)
        else:
            radii_px = tuple(radii_px or RADII_PX)
            text, result = _measure_boundary_f(folders, radii_px, absent or "one")
    elif metric == "cityscapes-instance":
        ratio = CITYSCAPES_DILATION_RATIO if dilation_ratio is None else dilation_ratio
        text, result = _measure_cityscapes(truth, detections, ratio)
    else:
        ratio = COCO_DILATION_RATIO if dilation_ratio is None else dilation_ratio
        text, result = _measure_ap(truth, detections, metric, categories, ratio)
    print(text)
    seconds = round(time.perf_counter() - started, 3)
    return {"metric": metric, **_for_json(result), "seconds": seconds}


def _refuse_unused(metric: Metric, flags: dict[str, tuple[object, tuple[Metric, ...]]]) -> None:
    """Refuse flags that would have no effect."""
    unused = [
        f"{flag} needs --metric {' or '.join(metrics)}"
        for flag, (value, metrics) in flags.items()
        if value is not None and metric not in metrics
    ]
    if unused:
        raise RecipeError(f"--metric {metric} does not use these flags: {'; '.join(unused)}")


Report = tuple[str, dict[str, Any]]
"""Text to print, and the content of RESULT."""


def _measure_ap(
    truth: str, detections: str, metric: Metric, categories: Categories, ratio: float
) -> Report:
    name, rules = _AP_METRICS[metric]
    measured = evaluate_detections(
        truth, detections, metric=name, rules=rules, dilation_ratio=ratio
    )
    per_category = {"per_category": measured.per_category} if categories == "all" else {}
    return format_metrics(measured, categories=categories), {
        **measured.by_published_name(),
        **per_category,
        "images": measured.images,
        "annotations": measured.annotations,
        "detections": measured.detections,
        "engine": measured.engine,
        "notices": list(measured.notices),
    }


def _measure_cityscapes(truth: str, detections: str, ratio: float) -> Report:
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


def _measure_miou(folders: LabelFolders) -> Report:
    measured = evaluate_miou(folders)
    return format_miou(measured), {
        "mIoU": measured.miou,
        "per_category": measured.per_class,
        "images": measured.images,
        "notices": list(measured.notices),
    }


def _measure_boundary_f(folders: LabelFolders, radii_px: tuple[int, ...], absent: Absent) -> Report:
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
        "notices": list(measured.notices),
    }


def _for_json(value: Any) -> Any:  # noqa: ANN401  any value of RESULT
    """Replace NaN, which JSON does not have, with null."""
    if isinstance(value, dict):
        return {name: _for_json(each) for name, each in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


if __name__ == "__main__":
    run_verb(evaluate)
