"""Format the versions of a registry as a table."""

from collections.abc import Sequence
from datetime import UTC, datetime

from pipeline.registry.versions import EVALUATED_ON_TAG, Version
from pipeline.text import format_score, format_table

_METRICS = ("boundary_ap", "mask_ap", "boundary_f_3px", "miou", "boundary_iou")
"""Metrics to show, if any version has them."""


def format_versions(versions: Sequence[Version]) -> str:
    """Format versions as a table, one per line, in the given order."""
    shown = [name for name in _METRICS if any(name in each.metrics for each in versions)]
    heads = ["model", "version", "alias", *shown, "measured on", "registered (UTC)"]
    rows = [
        [
            each.name,
            each.version,
            ", ".join(each.aliases) or "-",
            *(format_score(each.metrics.get(name, float("nan"))) for name in shown),
            each.tags.get(EVALUATED_ON_TAG, "") or "-",
            f"{datetime.fromtimestamp(each.created_ms / 1000, tz=UTC):%Y-%m-%d %H:%M}",
        ]
        for each in versions
    ]
    return "\n".join(format_table([heads, *rows]))
