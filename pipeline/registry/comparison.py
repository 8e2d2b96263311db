"""Compare two models that were evaluated on the same images.

One metric decides, the first of `_DECIDING_METRICS` that both models have: boundary AP for
instances, the boundary F-score or mean IoU for label maps, boundary IoU for refined masks.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.registry.provenance import EvaluationRecord
from pipeline.text import format_score, format_table

_DECIDING_METRICS = (r"boundary_ap", r"boundary_f(_\d+px)?", r"boundary_iou", r"mask_ap", r"miou")

_MAX_CHANGED = 5
"""Number of categories to show, of those that fell most and of those that rose most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two models, evaluated on the same images."""

    key: str
    """The deciding metric."""
    before: EvaluationRecord
    after: EvaluationRecord

    @property
    def old(self) -> float:
        """Deciding metric of `before`."""
        return self.before.metrics[self.key]

    @property
    def new(self) -> float:
        """Deciding metric of `after`."""
        return self.after.metrics[self.key]

    @property
    def change(self) -> float:
        """Difference of the deciding metric; negative if it falls."""
        return self.new - self.old

    def numbers(self) -> dict[str, Any]:
        """Return all numbers, for a RESULT line."""
        shared = [name for name in self.before.metrics if name in self.after.metrics]
        return {
            "metric": self.key,
            "before": self.old,
            "after": self.new,
            "change": self.change,
            "evaluated_on": self.after.evaluated_on,
            "metrics": {
                name: [self.before.metrics[name], self.after.metrics[name]] for name in shared
            },
        }


def compare(before: EvaluationRecord, after: EvaluationRecord) -> Comparison | None:
    """Compare two evaluations; None if images or metrics differ.

    Args:
        before: evaluation of the current model.
        after: evaluation of the model that may replace it.
    """
    if before.evaluated_on != after.evaluated_on:
        return None
    key = choose_metric(before, after)
    return Comparison(key=key, before=before, after=after) if key else None


def finds_nothing(metrics: Mapping[str, float]) -> bool:
    """Tell whether every deciding metric that was measured is 0."""
    measured = [
        value
        for name, value in metrics.items()
        if math.isfinite(value) and any(re.fullmatch(each, name) for each in _DECIDING_METRICS)
    ]
    return bool(measured) and not any(measured)


def choose_metric(before: EvaluationRecord, after: EvaluationRecord) -> str:
    """Choose the metric that decides between two models; "" if they have none in common."""
    shared = [
        name
        for name, value in before.metrics.items()
        if math.isfinite(value) and math.isfinite(after.metrics.get(name, math.nan))
    ]
    matches = (name for key in _DECIDING_METRICS for name in shared if re.fullmatch(key, name))
    return next(matches, "")


def get_per_category(record: EvaluationRecord, key: str) -> dict[str, float]:
    """Return the deciding metric of each category that has one."""
    key = {"miou": "iou"}.get(key, key)
    return {name: numbers[key] for name, numbers in record.per_category.items() if key in numbers}


def format_comparison(comparison: Comparison, *, before: str, after: str) -> str:
    """Format two models side by side: metrics first, then the categories that changed most.

    Args:
        comparison: the comparison.
        before: column head of the current model.
        after: column head of the other model.
    """
    lines = [
        f"{after} beside {before}, both on {comparison.after.evaluated_on}",
        "",
        *_format_rows("metric", _overall_rows(comparison), heads=(before, after)),
    ]
    fell, rose = _changed_rows(comparison)
    for title, rows in (("fell", fell), ("rose", rose)):
        if rows:
            name = f"{comparison.key}, the categories that {title} most"
            lines += ["", *_format_rows(name, rows, heads=(before, after))]
    return "\n".join(lines)


_Row = tuple[str, float, float]


def _overall_rows(comparison: Comparison) -> list[_Row]:
    """Return all metrics but recalls, which follow the precisions."""
    before, after = comparison.before.metrics, comparison.after.metrics
    return [
        (name, before[name], after[name])
        for name in before
        if "_ar_" not in name
        and name in after
        and not (math.isnan(before[name]) and math.isnan(after[name]))
    ]


def _changed_rows(comparison: Comparison) -> tuple[list[_Row], list[_Row]]:
    old = get_per_category(comparison.before, comparison.key)
    new = get_per_category(comparison.after, comparison.key)
    rows = [(n, old[n], new[n]) for n in old if n in new and not math.isnan(old[n] - new[n])]
    rows.sort(key=lambda row: row[2] - row[1])
    fell = [row for row in rows if row[2] < row[1]]
    rose = [row for row in reversed(rows) if row[2] > row[1]]
    return fell[:_MAX_CHANGED], rose[:_MAX_CHANGED]


def _format_rows(title: str, rows: Sequence[_Row], *, heads: tuple[str, str]) -> list[str]:
    cells = [
        (
            name,
            format_score(old),
            format_score(new),
            "-" if math.isnan(new - old) else f"{new - old:+.4f}",
        )
        for name, old, new in rows
    ]
    return format_table([(title, *heads, "difference"), *cells], align="<>", min_width=9)
