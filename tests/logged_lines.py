"""Collect the lines that the pipeline logs, also in fixtures of a module, unlike caplog."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class _LineHandler(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def collect_lines() -> Iterator[list[str]]:
    """Yield the list to which each logged line is added."""
    ours, handler = logging.getLogger("pipeline"), _LineHandler()
    before = ours.level
    ours.setLevel(logging.INFO)
    ours.addHandler(handler)
    try:
        yield handler.lines
    finally:
        ours.removeHandler(handler)
        ours.setLevel(before)
