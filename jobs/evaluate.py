#!/usr/bin/env python
"""Measure any COCO results file: mask, box or boundary AP.

    python jobs/evaluate.py --truth instances.json --detections results.json --metric boundary

Needs no model and no Ray. Prints a table and, as the last line, RESULT {json} with its numbers.
"""

import math
import time
from typing import Any

from pipeline.cli import run_verb
from pipeline.evaluation.metrics import MetricName, evaluate_detections
from pipeline.evaluation.table import Categories, format_metrics


def evaluate(
    *,
    truth: str,
    detections: str,
    metric: MetricName = "segm",
    categories: Categories = "extremes",
) -> dict[str, Any]:
    """Measure any COCO results file: mask (segm), box (bbox) or boundary AP.

    Args:
        truth: COCO annotation file (instances_*.json), path or URI.
        detections: COCO results file: a list of image_id, category_id, score, segmentation or bbox.
        metric: segm and bbox are pycocotools' numbers, boundary those of boundary-iou-api.
        categories: list the best and worst categories, all (then RESULT has them too), or none.
    """
    started = time.perf_counter()
    measured = evaluate_detections(truth, detections, metric=metric)
    print(format_metrics(measured, categories=categories))
    numbers: dict[str, Any] = dict(measured.by_coco_name())
    if categories == "all":
        numbers["per_category"] = measured.per_category
    return {
        "metric": metric,
        **_for_json(numbers),
        "images": measured.images,
        "annotations": measured.annotations,
        "detections": measured.detections,
        "engine": measured.engine,
        "notices": list(measured.notices),
        "seconds": round(time.perf_counter() - started, 3),
    }


def _for_json(numbers: dict[str, Any]) -> dict[str, Any]:
    """Say null where there is no number: JSON knows no NaN."""
    return {
        name: _for_json(value)
        if isinstance(value, dict)
        else (None if math.isnan(value) else value)
        for name, value in numbers.items()
    }


if __name__ == "__main__":
    run_verb(evaluate)
