"""Find the worker that the others wait for.

In each step the workers wait for each other once, in the backward pass that averages the gradients.
A slow worker is found by the rest of its time, in which it waits for nobody.
"""

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

SLOW = 1.5
"""Own time of a slow worker, as a multiple of the median of the others."""
_COSTS = 0.1
"""Least share of the time that it must cost."""
_WINDOW_S = 10.0
_WINDOWS = 2
"""A worker is named if it is slow in two windows in a row; less is often noise."""


class SyncClock:
    """The time of passes in which a worker may wait for others; it never waits for the device.

    Args:
        device: of the worker. A GPU's time is measured there, by events in its queue.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._host_s = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Count the time of the block."""
        if self._is_cuda:
            first, last = (_make_event() for _ in range(2))
            first.record()
            yield
            last.record()
            self._events.append((first, last))
        else:
            started_s = time.perf_counter()
            yield
            self._host_s += time.perf_counter() - started_s

    def take_s(self) -> float:
        """Return the seconds since the last call; this waits for the device."""
        seconds, self._host_s = self._host_s, 0.0
        events, self._events = self._events, []
        for first, last in events:
            last.synchronize()
            seconds += first.elapsed_time(last) / 1000
        return seconds


def _make_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


class SlowWorker(NamedTuple):
    """The slowest worker of some steps."""

    rank: int
    ratio: float
    """Its own time as a multiple of the median of the others."""
    is_slow: bool


def find_slowest(own_s: Sequence[float], *, seconds: float) -> SlowWorker | None:
    """Find the worker with the most time of its own; None for a single worker.

    Args:
        own_s: by rank, time without the passes in which it may wait for others.
        seconds: the whole time.
    """
    if len(own_s) < 2:
        return None
    rank = max(range(len(own_s)), key=own_s.__getitem__)
    others = statistics.median(each for other, each in enumerate(own_s) if other != rank)
    ratio = own_s[rank] / max(others, 1e-9)
    return SlowWorker(rank, ratio, ratio >= SLOW and own_s[rank] - others >= _COSTS * seconds)


class StragglerReport:
    """Says once that a worker is slow, when it has been so for a while."""

    def __init__(self) -> None:
        self._own_s: list[float] = []
        self._seconds = 0.0
        self._rank, self._windows = -1, 0

    def add(self, own_s: Sequence[float], *, seconds: float) -> tuple[int, str] | None:
        """Count some steps; return the rank of a worker that is slow, and what to say about it.

        Args:
            own_s: see `find_slowest`.
            seconds: see `find_slowest`.
        """
        before = self._own_s or [0.0] * len(own_s)
        self._own_s = [old + new for old, new in zip(before, own_s, strict=True)]
        self._seconds += seconds
        if self._seconds < _WINDOW_S:
            return None
        slowest = find_slowest(self._own_s, seconds=self._seconds)
        self._own_s, self._seconds = [], 0.0
        if slowest is None or not slowest.is_slow:
            self._windows = 0
            return None
        self._windows = self._windows + 1 if slowest.rank == self._rank else 1
        self._rank = slowest.rank
        if self._windows != _WINDOWS:
            return None
        return slowest.rank, (
            f"is slow: its own part of a step takes {slowest.ratio:.1f} times as long as that of "
            "the others, which wait for it. See what else its node does"
        )
