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
_WINDOWS = 3
"""Log windows in a row in which a worker must be slow; a single one is often noise."""


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
            pair = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            pair[0].record()
            yield
            pair[1].record()
            self._events.append(pair)
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
    """Says once that a worker is slow, when it has been so for some windows in a row."""

    def __init__(self) -> None:
        self._rank, self._windows = -1, 0

    def add(self, slowest: SlowWorker | None) -> str:
        """Count a window; return what to say about its slowest worker, or ""."""
        if slowest is None or not slowest.is_slow:
            self._windows = 0
            return ""
        self._windows = self._windows + 1 if slowest.rank == self._rank else 1
        self._rank = slowest.rank
        if self._windows != _WINDOWS:
            return ""
        return (
            f"is slow: its own part of a step takes {slowest.ratio:.1f} times as long as that of "
            "the others, which wait for it. See what else its node does"
        )
