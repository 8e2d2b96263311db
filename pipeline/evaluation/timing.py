"""How long models take: warmed up, the device's work awaited, interleaved, told as quantiles.

The first calls compile kernels and fill caches, so they are not counted. Models that are compared
take turns: whatever slows the machine for a while then slows all of them.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

Name = TypeVar("Name")


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Seconds of one call."""

    p10_s: float
    median_s: float
    p90_s: float
    calls: int
    """How many were timed."""


def time_calls(
    work: Mapping[Name, Callable[[], object]],
    *,
    device: torch.device,
    calls: int = 30,
    warmup_calls: int = 5,
) -> dict[Name, Timing]:
    """Time functions that work on a device, in turns.

    Args:
        work: functions by name, such as `lambda: model(images, sizes_hw)` in inference mode.
        device: where they work; a GPU's queue is emptied before and after each call.
        calls: of each, timed.
        warmup_calls: of each, before that.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in work}
    for turn in range(warmup_calls + calls):
        for name, call in work.items():
            _await(device)
            started = time.perf_counter()
            call()
            _await(device)
            if turn >= warmup_calls:
                seconds[name].append(time.perf_counter() - started)
    return {name: _timing(each) for name, each in seconds.items()}


def _await(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _timing(seconds: list[float]) -> Timing:
    p10, median, p90 = np.quantile(seconds, (0.1, 0.5, 0.9)).tolist()
    return Timing(p10_s=p10, median_s=median, p90_s=p90, calls=len(seconds))
