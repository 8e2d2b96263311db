"""The numbers of an evaluation as text that reads well in a terminal and in a job's log."""

import math
from collections.abc import Sequence
from typing import Literal

from pipeline.evaluation.metrics import DILATION_RATIO, Metrics

Categories = Literal["extremes", "all", "none"]

_EXTREMES = 5
"""So many best and so many worst categories are listed."""


def format_metrics(metrics: Metrics, *, categories: Categories = "extremes") -> str:
    """Lay out one metric: overall, by size of object, by category, and what to know about it.

    Args:
        metrics: what was measured.
        categories: which categories to list; "extremes" are the best and the worst.
    """
    band = f", band {DILATION_RATIO:.0%} of the diagonal" if metrics.metric == "boundary" else ""
    named = {name: number(value) for name, value in metrics.by_coco_name().items()}
    lines = [
        f"{metrics.prefix} AP by {metrics.engine}{band}",
        f"{metrics.images} images, {metrics.annotations} annotations, "
        f"{metrics.detections} detections",
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


def number(value: float) -> str:
    """Show a number of 0 to 1, or "-" where there is none."""
    return "-" if math.isnan(value) else f"{value:.4f}"


def _categories(metrics: Metrics, *, which: Categories) -> Sequence[str]:
    known = [name for name, ap in metrics.per_category.items() if not math.isnan(ap)]
    if which == "none" or not known:
        return [""]
    known.sort(key=lambda name: -metrics.per_category[name])
    dropped = len(known) - 2 * _EXTREMES
    if which == "extremes" and dropped > 1:
        cut = [*known[:_EXTREMES], "", *known[-_EXTREMES:]]
    else:
        cut = known
    width = max(len("category"), *(len(name) for name in cut))
    lines = ["", f"{'category':<{width}}  objects      AP"]
    for name in cut:
        if name:
            ap = number(metrics.per_category[name])
            lines.append(f"{name:<{width}}  {metrics.objects[name]:>7}  {ap:>6}")
        else:
            lines.append(f"... {dropped} more between ...")
    bare = len(metrics.per_category) - len(known)
    if bare:
        lines.append(f"{bare} categories without objects in the truth do not count")
    return [*lines, ""]
