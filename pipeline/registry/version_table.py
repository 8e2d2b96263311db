"""The versions of a registry as a table that a person reads."""

from collections.abc import Sequence
from datetime import UTC, datetime

from pipeline.evaluation.table import number
from pipeline.registry.versions import EVALUATED_ON_TAG, Version

_LEADING = ("boundary_ap", "mask_ap", "boundary_f_3px", "miou")
"""Numbers that are shown, where a version has them."""


def format_versions(versions: Sequence[Version]) -> str:
    """Lay out versions, one a line, in the order that they have."""
    shown = [name for name in _LEADING if any(name in each.metrics for each in versions)]
    heads = ["model", "version", "alias", *shown, "measured on", "registered (UTC)"]
    rows = [
        [
            each.name,
            each.version,
            ", ".join(each.aliases) or "-",
            *(number(each.metrics.get(name, float("nan"))) for name in shown),
            each.tags.get(EVALUATED_ON_TAG, "") or "-",
            f"{datetime.fromtimestamp(each.created_ms / 1000, tz=UTC):%Y-%m-%d %H:%M}",
        ]
        for each in versions
    ]
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [heads, *rows]
    )
