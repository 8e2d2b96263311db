"""Tables are aligned in columns, and NaN is shown as a dash."""

import math

from pipeline.text import escape_controls, format_count, format_score, format_table


def test_format_table() -> None:
    rows = [["name", "AP", "AP50"], ["a long name", "0.1234", "-"], ["b", "0.5", "0.25"]]
    assert format_table(rows, align="<>", min_width=7) == [
        "name              AP     AP50",
        "a long name   0.1234        -",
        "b                0.5     0.25",
    ]
    # Without trailing blanks.
    assert format_table([["a", "bcd"], ["ab", "c"]]) == ["a   bcd", "ab  c"]


def test_format_score() -> None:
    assert format_score(0.5) == "0.5000"
    assert format_score(math.nan) == "-"


def test_format_count() -> None:
    counts = [format_count(1, "worker"), format_count(0, "worker"), format_count(2, "category")]
    assert counts == ["1 worker", "0 workers", "2 categories"]


def test_escape_controls() -> None:
    """A name in an error must not recolor or clear the terminal, or turn the text around."""
    assert escape_controls("a\n\tb \xe9 \u56f3") == "a\n\tb \xe9 \u56f3"
    assert escape_controls("\x1b[2J\r\0\u202e\ud800") == r"\x1b[2J\r\x00\u202e\ud800"
