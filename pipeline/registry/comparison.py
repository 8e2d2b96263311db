"""Two models measured on the same images: which is better, in one number and in all of them.

The number that decides is chosen from what both have: boundary AP of instances, the boundary
F-score or the mean IoU of label maps.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.table import number
from pipeline.registry.provenance import Measured

_DECIDERS = (r"boundary_ap", r"boundary_f(_\d+px)?", r"mask_ap", r"miou")
"""What decides: the first that both have."""

_CHANGED = 5
"""So many categories that fell most and so many that rose most are shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A model beside another one, on the same images."""

    key: str
    """The metric that decides."""
    before: Measured
    after: Measured

    @property
    def old(self) -> float:
        """The number that decides, of the model that was there."""
        return self.before.metrics[self.key]

    @property
    def new(self) -> float:
        """The same of the other one."""
        return self.after.metrics[self.key]

    @property
    def change(self) -> float:
        """What is gained; below 0 where it falls."""
        return self.new - self.old

    def numbers(self) -> dict[str, Any]:
        """Give all of it for a RESULT line."""
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


def compare(before: Measured, after: Measured) -> Comparison | None:
    """Put two measurements side by side; None where they have no number in common.

    Args:
        before: of the model that is there.
        after: of the one that may take its place.
    """
    if before.evaluated_on != after.evaluated_on:
        return None
    key = deciding(before, after)
    return Comparison(key=key, before=before, after=after) if key else None


def deciding(before: Measured, after: Measured) -> str:
    """Name the metric that decides between two models; "" where they have none in common."""
    shared = [name for name in before.metrics if _both(before, after, name)]
    found = (name for wanted in _DECIDERS for name in shared if re.fullmatch(wanted, name))
    return next(found, "")


def of_categories(measured: Measured, key: str) -> dict[str, float]:
    """Give the categories' own numbers of the metric that decides."""
    key = {"miou": "iou"}.get(key, key)
    return {name: numbers[key] for name, numbers in measured.per_category.items() if key in numbers}


def format_comparison(comparison: Comparison, *, before: str, after: str) -> str:
    """Lay out two models side by side: overall and by size, then the categories that changed most.

    Args:
        comparison: of the two.
        before: what to call the one that was there.
        after: what to call the other one.
    """
    lines = [
        f"{after} beside {before}, both on {comparison.after.evaluated_on}",
        "",
        *_table("metric", _overall(comparison), heads=(before, after)),
    ]
    fell, rose = _categories(comparison)
    for title, rows in (("fell", fell), ("rose", rose)):
        if rows:
            name = f"{comparison.key}, the categories that {title} most"
            lines += ["", *_table(name, rows, heads=(before, after))]
    return "\n".join(lines)


_Row = tuple[str, float, float]


def _overall(comparison: Comparison) -> list[_Row]:
    """All but recalls, which follow the precisions."""
    before, after = comparison.before.metrics, comparison.after.metrics
    return [
        (name, before[name], after[name])
        for name in before
        if "_ar_" not in name and _any(before[name], after.get(name, math.nan)) and name in after
    ]


def _categories(comparison: Comparison) -> tuple[list[_Row], list[_Row]]:
    old = of_categories(comparison.before, comparison.key)
    new = of_categories(comparison.after, comparison.key)
    rows = [(n, old[n], new[n]) for n in old if n in new and not math.isnan(old[n] - new[n])]
    rows.sort(key=lambda row: row[2] - row[1])
    fell = [row for row in rows if row[2] < row[1]]
    rose = [row for row in reversed(rows) if row[2] > row[1]]
    return fell[:_CHANGED], rose[:_CHANGED]


def _table(title: str, rows: Sequence[_Row], *, heads: tuple[str, str]) -> list[str]:
    width = max(len(title), *(len(name) for name, *_ in rows))
    columns = [max(len(head), 9) for head in heads]
    lines = [
        f"{title:<{width}}  "
        + "  ".join(f"{h:>{w}}" for h, w in zip(heads, columns, strict=True))
        + "  difference"
    ]
    for name, old, new in rows:
        change = "-" if math.isnan(new - old) else f"{new - old:+.4f}"
        values = zip((old, new), columns, strict=True)
        cells = "  ".join(f"{number(value):>{w}}" for value, w in values)
        lines.append(f"{name:<{width}}  {cells}  {change:>10}")
    return lines


def _both(before: Measured, after: Measured, name: str) -> bool:
    return _known(before, name) and _known(after, name)


def _known(measured: Measured, name: str) -> bool:
    return math.isfinite(measured.metrics.get(name, math.nan))


def _any(*values: float) -> bool:
    return not all(map(math.isnan, values))
