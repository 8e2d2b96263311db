"""Keep metric points on disk, in logging order, until the tracking store has accepted them.

A spool file holds one JSON line per logged step; a small file beside it holds the number of bytes
delivered. Points are written here before they are sent, so neither a server outage nor a killed
process loses any.
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
    """An append-only file of points, and the offset up to which they were delivered.

    One process appends to a file; another may deliver it only after that process has ended.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mark = path.with_suffix(".sent")

    def append(self, points: Iterable[Point]) -> None:
        """Append points to the file.

        Raises:
            OSError: the disk is full or gone.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write("".join(json.dumps(point) + "\n" for point in points))

    def read_pending(self, *, max_points: int) -> tuple[list[Point], int]:
        """Read the first undelivered points, and the offset to mark once they are delivered."""
        points: list[Point] = []
        offset = self._read_mark()
        if not self.path.exists():
            return points, offset
        with self.path.open("rb") as stream:
            stream.seek(offset)
            while len(points) < max_points:
                line = stream.readline()
                if not line.endswith(b"\n"):  # the end, or a line still being written
                    break
                offset = stream.tell()
                points += parse_line(line)
        return points, offset

    def save_offset(self, offset: int) -> None:
        """Record that everything before this offset was delivered."""
        draft = self._mark.with_suffix(".draft")
        draft.write_text(str(offset))
        draft.replace(self._mark)

    def count_pending(self) -> int:
        """Count the undelivered points."""
        return len(self.read_pending(max_points=2**31)[0])

    def remove(self) -> None:
        """Delete the file and its mark."""
        for path in (self.path, self._mark):
            path.unlink(missing_ok=True)

    def _read_mark(self) -> int:
        try:
            return int(self._mark.read_text())
        except (OSError, ValueError):
            return 0


def create_spool(folder: Path, *, run_id: str, time_ms: int) -> Spool:
    """Create a spool for this process; the names of a run's spools sort by time."""
    return Spool(folder / f"{run_id}-{time_ms:013d}-{os.uname().nodename}-{os.getpid()}{SUFFIX}")


def parse_line(line: bytes) -> list[Point]:
    """Parse one line; skip a line that a crash cut off, with a warning."""
    try:
        time_ms, step, values = json.loads(line)
        return [Point(int(time_ms), int(step), {k: float(v) for k, v in values.items()})]
    except (ValueError, TypeError, AttributeError):
        _log.warning("event=spool_line_unreadable line=%r", line[:80])
        return []
