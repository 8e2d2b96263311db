"""Metric points on disk, in the order they were logged, until a tracking store has taken them.

A spool file holds one JSON line for each step logged; a small file beside it holds how many bytes
were delivered. Points are written here before they are sent, so a server that is away, or a process
that is killed, loses none of them.
"""

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_log = logging.getLogger(__name__)

SUFFIX = ".jsonl"


class Point(NamedTuple):
    """The metrics of one step."""

    time_ms: int
    step: int
    values: dict[str, float]


class Spool:
    """One append-only file of points and the place up to which they were delivered.

    One process appends to a file; another may deliver it only when that one is gone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mark = path.with_suffix(".sent")

    def append(self, points: Iterable[Point]) -> None:
        """Write points at the end.

        Raises:
            OSError: the disk is full or gone.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write("".join(json.dumps(point) + "\n" for point in points))

    def pending(self, *, max_points: int) -> tuple[list[Point], int]:
        """Read the first points that were not delivered, and the offset to mark when they are."""
        points: list[Point] = []
        offset = self._delivered()
        if not self.path.exists():
            return points, offset
        with self.path.open("rb") as stream:
            stream.seek(offset)
            while len(points) < max_points:
                line = stream.readline()
                if not line.endswith(b"\n"):  # the end, or a line still being written
                    break
                offset = stream.tell()
                points += parse(line)
        return points, offset

    def mark(self, offset: int) -> None:
        """Remember that everything before this offset was delivered."""
        draft = self._mark.with_suffix(".draft")
        draft.write_text(str(offset))
        draft.replace(self._mark)

    def count_pending(self) -> int:
        """Count the points that were not delivered."""
        return len(self.pending(max_points=2**31)[0])

    def remove(self) -> None:
        """Delete the file and its mark."""
        for path in (self.path, self._mark):
            path.unlink(missing_ok=True)

    def _delivered(self) -> int:
        try:
            return int(self._mark.read_text())
        except (OSError, ValueError):
            return 0


def new_spool(folder: Path, *, run_id: str, time_ms: int) -> Spool:
    """Give this process a spool of its own; the names of a run's spools sort by time."""
    return Spool(folder / f"{run_id}-{time_ms:013d}-{os.uname().nodename}-{os.getpid()}{SUFFIX}")


def parse(line: bytes) -> list[Point]:
    """Read one line; a line that a crash cut off gives nothing, and a warning."""
    try:
        time_ms, step, values = json.loads(line)
        return [Point(int(time_ms), int(step), {k: float(v) for k, v in values.items()})]
    except (ValueError, TypeError, AttributeError):
        _log.warning("event=spool_line_unreadable line=%r", line[:80])
        return []
