"""The numbers of an evaluation as text that reads well in a terminal and in a job's log."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from pipeline.evaluation.bands import percent
from pipeline.evaluation.lvis import LvisMetrics
from pipeline.evaluation.mask_quality import THRESHOLDS, MaskQuality
from pipeline.evaluation.metrics import MetricName, Metrics

Categories = Literal["extremes", "all", "none"]

_EXTREMES = 5
"""So many best and so many worst categories are listed."""


def format_metrics(metrics: Metrics, *, categories: Categories = "extremes") -> str:
    """Lay out one metric: overall, by size of object, by category, and what to know about it.

    Args:
        metrics: what was measured.
        categories: which categories to list; "extremes" are the best and the worst.
    """
    named = {name: number(value) for name, value in metrics.by_coco_name().items()}
    lines = [
        *_head(metrics),
        "",
        "           all   IoU .50   IoU .75     small    medium     large",
        "AP  "
        + "".join(f"{named[key]:>10}" for key in ("AP", "AP50", "AP75", "APs", "APm", "APl"))[3:],
        "",
        "        1 det.   10 det.  100 det.     small    medium     large",
        "AR  "
        + "".join(f"{named[k]:>10}" for k in ("AR1", "AR10", "AR100", "ARs", "ARm", "ARl"))[3:],
    ]
    lines += _categories(metrics, which=categories)
    lines += [f"note: {notice}" for notice in metrics.notices]
    return "\n".join(lines)


def format_lvis(metrics: LvisMetrics, *, categories: Categories = "extremes") -> str:
    """Lay out one metric of LVIS: overall, by size, by frequency, and by category.

    Args:
        metrics: what was measured.
        categories: which categories to list; "extremes" are the best and the worst.
    """
    named = {name: number(value) for name, value in metrics.by_lvis_name().items()}
    ap = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
    ar = ("AR@300", "ARs@300", "ARm@300", "ARl@300")
    lines = [
        f"LVIS {_head(metrics)[0]}",
        *_head(metrics)[1:],
        "",
        "         all  IoU .50  IoU .75    small   medium    large     rare   common frequent",
        "AP " + "".join(f"{named[key]:>9}" for key in ap),
        "",
        "    300 det.    small   medium    large",
        "AR " + "".join(f"{named[key]:>9}" for key in ar),
    ]
    lines += _categories(metrics, which=categories)
    lines += [f"note: {notice}" for notice in metrics.notices]
    return "\n".join(lines)


def format_summary(by_metric: Mapping[MetricName, Metrics | LvisMetrics]) -> str:
    """Lay out several metrics of the same detections in one table: overall, then by category."""
    first = next(iter(by_metric.values()))
    engines = ", ".join(dict.fromkeys(metrics.engine for metrics in by_metric.values()))
    rules = "LVIS" if isinstance(first, LvisMetrics) else "COCO"
    columns = {
        "AP": "ap",
        "AP50": "ap50",
        "AP75": "ap75",
        "small": "ap_small",
        "medium": "ap_medium",
        "large": "ap_large",
    }
    if isinstance(first, LvisMetrics):
        columns |= {"rare": "ap_rare", "common": "ap_common", "frequent": "ap_frequent"}
    lines = [
        f"{first.images} images, {first.annotations} annotations, {first.detections} detections; "
        f"{rules}'s rules, boundary band {percent(first.dilation_ratio)} of the diagonal "
        f"({engines})",
        "",
        f"{'':<10}" + "".join(f"{head:>{max(8, len(head) + 1)}}" for head in columns),
    ]
    for metrics in by_metric.values():
        cells = (
            f"{number(getattr(metrics, key)):>{max(8, len(head) + 1)}}"
            for head, key in columns.items()
        )
        lines.append(f"{metrics.prefix:<10}" + "".join(cells))
    shown, dropped = _shown(first, which="extremes")
    if shown:
        width = max(len("category"), *(len(name) for name in shown))
        heads = "".join(f"{metrics.prefix:>10}" for metrics in by_metric.values())
        lines += ["", f"{'category':<{width}}  objects{heads}"]
    for name in shown:
        aps = (number(metrics.per_category[name]) for metrics in by_metric.values() if name)
        row = f"{name:<{width}}  {first.objects[name]:>7}" if name else _gap(dropped)
        lines.append(row + "".join(f"{ap:>10}" for ap in aps))
    notices = dict.fromkeys(notice for metrics in by_metric.values() for notice in metrics.notices)
    return "\n".join([*lines, *(f"note: {notice}" for notice in notices)])


def format_quality(quality: MaskQuality) -> str:
    """Lay out how good masks are in the boxes of the truth, overall and for large objects."""
    means = quality.means()
    heads = ["mean", *(f">={threshold:g}" for threshold in THRESHOLDS), "large"]
    keys = ["", *(f"_over_{threshold * 100:.0f}" for threshold in THRESHOLDS), "_large"]
    lines = [f"{'in true boxes':<14}" + "".join(f"{head:>8}" for head in heads)]
    for name in ("mask_iou", "boundary_iou"):
        values = (number(means[name + key]) for key in keys)
        lines.append(f"{name.replace('_iou', ' IoU'):<14}" + "".join(f"{v:>8}" for v in values))
    return "\n".join(lines)


def number(value: float) -> str:
    """Show a number of 0 to 1, or "-" where there is none."""
    return "-" if math.isnan(value) else f"{value:.4f}"


def _head(metrics: Metrics | LvisMetrics) -> list[str]:
    ratio = percent(metrics.dilation_ratio)
    band = f", band {ratio} of the diagonal" if metrics.metric == "boundary" else ""
    return [
        f"{metrics.prefix} AP by {metrics.engine}{band}",
        f"{metrics.images} images, {metrics.annotations} annotations, "
        f"{metrics.detections} detections",
    ]


def _shown(metrics: Metrics | LvisMetrics, *, which: Categories) -> tuple[list[str], int]:
    """Choose categories, best first; "" stands for those that are left out, which are counted."""
    known = [name for name, ap in metrics.per_category.items() if not math.isnan(ap)]
    known.sort(key=lambda name: -metrics.per_category[name])
    dropped = len(known) - 2 * _EXTREMES
    if which == "none":
        return [], 0
    if which == "extremes" and dropped > 1:
        return [*known[:_EXTREMES], "", *known[-_EXTREMES:]], dropped
    return known, 0


def _gap(dropped: int) -> str:
    return f"... {dropped} more between ..."


def _categories(metrics: Metrics | LvisMetrics, *, which: Categories) -> Sequence[str]:
    shown, dropped = _shown(metrics, which=which)
    if not shown:
        return [""]
    width = max(len("category"), *(len(name) for name in shown))
    lines = ["", f"{'category':<{width}}  objects      AP"]
    for name in shown:
        if name:
            ap = number(metrics.per_category[name])
            lines.append(f"{name:<{width}}  {metrics.objects[name]:>7}  {ap:>6}")
        else:
            lines.append(_gap(dropped))
    bare = sum(math.isnan(ap) for ap in metrics.per_category.values())
    if bare:
        lines.append(f"{bare} categories without objects in the truth do not count")
    return [*lines, ""]
