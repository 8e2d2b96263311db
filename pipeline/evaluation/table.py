"""Format AP and mask quality as tables for terminals and logs."""

import math
from collections.abc import Iterable, Mapping
from typing import Literal

from pipeline.evaluation.ap_engine import MetricName
from pipeline.evaluation.bands import format_percent
from pipeline.evaluation.mask_quality import THRESHOLDS, MaskQuality
from pipeline.evaluation.metrics import LvisMetrics, Metrics
from pipeline.text import format_count, format_score, format_table

Categories = Literal["extremes", "all", "none"]

_EXTREMES = 5
"""Number of best and of worst categories to list."""

_SIZES = ("small", "medium", "large")
_FREQUENCIES = ("rare", "common", "frequent")


def format_metrics(metrics: Metrics, *, categories: Categories = "extremes") -> str:
    """Format one metric: overall, by object size, and by category.

    Args:
        metrics: to format.
        categories: categories to list; "extremes" are the best and the worst.
    """
    is_lvis = isinstance(metrics, LvisMetrics)
    ap = {"all": "ap", "IoU .50": "ap50", "IoU .75": "ap75"}
    ap |= {each: f"ap_{each}" for each in _SIZES + _FREQUENCIES * is_lvis}
    limits = (300,) if is_lvis else (1, 10, 100)
    ar = {f"{limit} det.": f"ar_{limit}" for limit in limits}
    ar |= {each: f"ar_{each}" for each in _SIZES}
    scores = []
    for label, columns in (("AP", ap), ("AR", ar)):
        values = (format_score(getattr(metrics, key)) for key in columns.values())
        scores += ["", *format_table([["", *columns], [label, *values]], align="<>", min_width=8)]
    ratio = format_percent(metrics.dilation_ratio)
    band = f", band {ratio} of the diagonal" if metrics.metric == "boundary" else ""
    lines = [
        f"{'LVIS ' * is_lvis}{metrics.prefix} AP by {metrics.engine}{band}",
        _format_counts(metrics),
        *scores,
    ]
    rows = _format_categories({"AP": metrics}, which=categories)
    undefined = sum(math.isnan(ap) for ap in metrics.per_category.values())
    if rows and undefined:
        rows.append(f"categories without objects in the truth: {undefined}, not counted")
    return "\n".join([*lines, *rows, "", *format_notices(metrics.notices)])


def format_summary(by_metric: Mapping[MetricName, Metrics]) -> str:
    """Format several metrics of the same detections in one table: overall, then by category."""
    first = next(iter(by_metric.values()))
    is_lvis = isinstance(first, LvisMetrics)
    columns = {"AP": "ap", "AP50": "ap50", "AP75": "ap75"}
    columns |= {each: f"ap_{each}" for each in _SIZES + _FREQUENCIES * is_lvis}
    rows = [
        [metrics.prefix, *(format_score(getattr(metrics, key)) for key in columns.values())]
        for metrics in by_metric.values()
    ]
    notices = dict.fromkeys(notice for metrics in by_metric.values() for notice in metrics.notices)
    return "\n".join(
        [
            f"{_format_counts(first)}; {'LVIS' if is_lvis else 'COCO'}'s rules, boundary band "
            f"{format_percent(first.dilation_ratio)} of the diagonal ({first.engine})",
            "",
            *format_table([["", *columns], *rows], align="<>", min_width=6),
            *_format_categories({m.prefix: m for m in by_metric.values()}, which="extremes"),
            *format_notices(notices),
        ]
    )


def format_quality(quality: MaskQuality) -> str:
    """Format the quality of masks in the true boxes, overall and for large objects."""
    means = quality.means()
    keys = {"mean": ""}
    keys |= {f">={threshold:g}": f"_over_{threshold * 100:.0f}" for threshold in THRESHOLDS}
    keys |= {"large": "_large"}
    rows = [["in true boxes", *keys]]
    for name in ("mask_iou", "boundary_iou"):
        scores = (format_score(means[name + key]) for key in keys.values())
        rows.append([name.replace("_iou", " IoU"), *scores])
    return "\n".join(format_table(rows, align="<>", min_width=6))


def format_notices(notices: Iterable[str]) -> list[str]:
    """Format each notice as a line."""
    return [f"note: {notice}" for notice in notices]


def _format_counts(metrics: Metrics) -> str:
    counts = {"image": metrics.images, "annotation": metrics.annotations}
    counts["detection"] = metrics.detections
    return ", ".join(format_count(count, noun) for noun, count in counts.items())


def _format_categories(columns: Mapping[str, Metrics], *, which: Categories) -> list[str]:
    """Format a row per category, the best by the first column first, after an empty line."""
    first = next(iter(columns.values()))
    known = [name for name, ap in first.per_category.items() if not math.isnan(ap)]
    known.sort(key=lambda name: -first.per_category[name])
    dropped = len(known) - 2 * _EXTREMES
    shortened = which == "extremes" and dropped > 1
    shown = [*known[:_EXTREMES], *known[-_EXTREMES:]] if shortened else known
    if which == "none" or not shown:
        return []
    rows = [["category", "objects", *columns]]
    for name in shown:
        scores = (format_score(metrics.per_category[name]) for metrics in columns.values())
        rows.append([name, str(first.objects[name]), *scores])
    lines = format_table(rows, align="<>", min_width=6)
    if shortened:
        lines.insert(1 + _EXTREMES, f"... {dropped} more ...")
    return ["", *lines]
