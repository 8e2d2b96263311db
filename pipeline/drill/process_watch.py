"""The memory of all processes that this one has started, over time, and whether it grows."""

import csv
import ctypes
import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

MB_PER_HOUR = 40.0
"""A process that grows by less gains less than 1 GB in a day."""
_LEAST_MB = 20.0
"""Less than this comes and goes, as allocators keep what they had."""

_SAMPLE_EVERY_S = 5.0
_SET_CHILD_SUBREAPER = 36
"""Of prctl: orphans of this process's children become its own children."""
_MIN_PAIR_S = 60.0
"""Shorter differences are noise."""
_REMEMBERING = {"gcs_server", "raylet"}
"""Ray's own servers, which keep a record of actors, tasks and jobs that have ended."""
_START_S = 180.0
"""A process imports, and fills its caches; on a busy machine this takes minutes."""
_MIN_SETTLED_S = 120.0
"""Shortest time after the start that is judged."""
_SCRIPTS = {
    "jobs.train": "driver",
    "mlflow": "MLflow server",
    "uvicorn": "MLflow server",
    "dashboard.py": "dashboard",
    "agent.py": "agent of a node",
    "main.py": "agent of a node",
    "monitor.py": "autoscaler",
    "log_monitor.py": "log monitor",
}
"""Kinds of Python processes by what they run."""


class Sample(NamedTuple):
    """The memory of a process at a time."""

    seconds: float
    """Since the start of the watch."""
    kind: str
    pid: int
    memory_mb: float
    """Its own; what it shares with others is not counted."""
    files: int
    """That it has open."""


class Growth(NamedTuple):
    """Change in the memory of a kind of process."""

    kind: str
    processes: int
    longest_min: float
    """Of the process that was seen longest."""
    first_mb: float
    """Median over its processes, when they had started."""
    last_mb: float
    """Largest at the end of a process."""
    mb_per_hour: float | None
    """None if no process lived for long enough."""
    settled_min: float
    """Of the process that was judged for longest."""
    files_per_hour: float | None

    @property
    def verdict(self) -> str:
        """Say whether it grows."""
        if self.mb_per_hour is None:
            return "too short"
        grown_mb = self.mb_per_hour * self.settled_min / 60
        if self.mb_per_hour <= MB_PER_HOUR or grown_mb <= _LEAST_MB:
            return "flat"
        return "grows, of Ray" if self.kind in _REMEMBERING else "GROWS"


class ProcessWatch:
    """Samples of all processes below this one, which are also written to a CSV file.

    Args:
        file: the CSV file.
    """

    def __init__(self, file: Path) -> None:
        self.samples: list[Sample] = []
        self.started_s = time.monotonic()
        self._stream = file.open("w", newline="")
        self._table = csv.writer(self._stream)
        self._table.writerow(Sample._fields)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLE_EVERY_S):
            found = list(_sample(time.monotonic() - self.started_s))
            self.samples += found
            self._table.writerows(found)
            self._stream.flush()

    def close(self) -> None:
        """Stop."""
        self._stop.set()
        self._thread.join()
        self._stream.close()


@contextmanager
def watch_processes(file: Path) -> Iterator[ProcessWatch]:
    """Watch until the end of the block."""
    system = ctypes.CDLL(None)
    system.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    watch = ProcessWatch(file)
    try:
        yield watch
    finally:
        watch.close()
        system.prctl(_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def list_processes() -> list[psutil.Process]:
    """List the processes that this one has started, and their orphans, without zombies."""
    return [process for process, status in _list_all() if status != psutil.STATUS_ZOMBIE]


def list_zombies() -> list[psutil.Process]:
    """List the processes that have ended and whose parent does not ask for their end."""
    own = os.getpid()
    zombies = [process for process, status in _list_all() if status == psutil.STATUS_ZOMBIE]
    return [each for each in zombies if _parent(each) not in {own, None}]


def measure_growth(samples: Sequence[Sample]) -> list[Growth]:
    """Fit how each kind of process grows.

    The slope is the median of those between all pairs of samples of one process, 60 s apart or
    more, without the first third of its life and its first 3 minutes (Theil-Sen). So neither a peak
    nor a restart counts. A kind grows if its slope is more than 40 MB/h, and amounts to more than
    20 MB over the process that was judged for longest.

    Returns:
        By kind; the slope is None if no process lived for 5 minutes.
    """
    lives: dict[str, dict[int, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for each in samples:
        lives[each.kind][each.pid].append(each)
    return [_measure_kind(kind, list(processes.values())) for kind, processes in lives.items()]


def _measure_kind(kind: str, lives: list[list[Sample]]) -> Growth:
    settled = [_settle(life) for life in lives]
    long = [life for life in settled if _duration_s(life) >= _MIN_SETTLED_S]
    memory = [[(each.seconds, each.memory_mb) for each in life] for life in long]
    files = [[(each.seconds, float(each.files)) for each in life] for life in long]
    return Growth(
        kind,
        len(lives),
        max(map(_duration_s, lives)) / 60,
        float(np.median([life[0].memory_mb for life in long or lives])),
        max(life[-1].memory_mb for life in long or lives),
        _slope_per_hour(memory),
        max(map(_duration_s, long), default=0.0) / 60,
        _slope_per_hour(files),
    )


def _settle(life: list[Sample]) -> list[Sample]:
    """Leave out the start of a process."""
    start_s = life[0].seconds + max(_START_S, _duration_s(life) / 3)
    return [each for each in life if each.seconds >= start_s]


def _duration_s(life: list[Sample]) -> float:
    return life[-1].seconds - life[0].seconds if life else 0.0


def _slope_per_hour(lives: list[list[tuple[float, float]]]) -> float | None:
    """Return the median slope over all pairs within each life."""
    slopes = []
    for life in lives:
        seconds, values = np.array(life).T
        first, second = np.triu_indices(len(seconds), k=1)
        apart = seconds[second] - seconds[first]
        far = apart >= _MIN_PAIR_S
        slopes.append((values[second] - values[first])[far] / apart[far])
    return float(np.median(np.concatenate(slopes))) * 3600 if slopes else None


def _sample(seconds: float) -> Iterator[Sample]:
    for process in list_processes():
        # It may end meanwhile.
        with suppress(psutil.Error, OSError):
            if kind := classify(process.cmdline()):
                own = process.memory_full_info().uss / 1e6
                yield Sample(round(seconds, 1), kind, process.pid, round(own, 2), process.num_fds())


def classify(command: Sequence[str]) -> str:
    """Name the kind of a process by its command line; "" if it is none of a run.

    Ray's own processes have the name of their actor or task as their command line.
    """
    if not command:
        return ""
    if command[0].startswith("ray::"):
        name = command[0].removeprefix("ray::")
        return name.partition(".")[0].partition("(")[0].partition(" ")[0].strip("_")
    if command[0].startswith("ray-dashboard"):
        return "dashboard"
    names = [Path(word).name for word in command[:6]]
    if names[0] in {"raylet", "gcs_server"}:
        return names[0]
    return next((_SCRIPTS[name] for name in names if name in _SCRIPTS), "")


def _list_all() -> list[tuple[psutil.Process, str]]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found.append((process, process.status()))
    return found


def _parent(process: psutil.Process) -> int | None:
    try:
        return int(process.ppid())
    except psutil.NoSuchProcess:
        return None
