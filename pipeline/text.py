"""Numbers and tables as text for terminals and logs."""

import difflib
import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence


def format_score(value: float) -> str:
    """Format a score between 0 and 1; NaN becomes "-"."""
    return "-" if math.isnan(value) else f"{value:.4f}"


def format_count(count: int, noun: str) -> str:
    """Format a count with its noun, such as "1 worker" or "2 categories"."""
    if count == 1:
        return f"1 {noun}"
    return f"{count} {noun[:-1]}ies" if noun.endswith("y") else f"{count} {noun}s"


def format_names(names: Sequence[str], *, limit: int = 20) -> str:
    """Join names by commas; beyond the limit, only count them."""
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def format_table(
    rows: Sequence[Sequence[str]], *, align: str = "<", min_width: int = 0
) -> list[str]:
    """Align cells in columns, two spaces apart.

    Args:
        rows: the header first; all rows have the same length.
        align: "<" or ">" for each column; the last one also applies to the columns after it.
        min_width: minimum width of right-aligned columns.
    """
    columns = list(zip(*rows, strict=True))
    align = align.ljust(len(columns), align[-1])
    widths = [
        max(*map(len, column), min_width if side == ">" else 0)
        for column, side in zip(columns, align, strict=False)
    ]
    return [
        "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=False)
        ).rstrip()
        for row in rows
    ]


def format_counts(words: Iterable[str]) -> str:
    """Count equal words: `.gif 1, .txt 2`."""
    return ", ".join(f"{word} {count}" for word, count in sorted(Counter(words).items()))


def format_markdown(rows: Sequence[Sequence[str]]) -> str:
    """Format rows as a Markdown table, the header first."""
    header, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([header, "|" + "---|" * len(rows[0]), *body])


def suggest(word: str, known: Collection[str]) -> str:
    """Return ", perhaps you meant NAME" for a word that is similar to a known one, or ""."""
    near = difflib.get_close_matches(word, known, n=1)
    return f", perhaps you meant {near[0]}" if near else ""


def escape_controls(text: str) -> str:
    """Escape what a terminal would obey, such as colors or a cleared line, but not line ends."""
    return "".join(
        each if each.isprintable() or each in "\n\t" else each.encode("unicode_escape").decode()
        for each in text
    )
