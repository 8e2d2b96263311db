"""How long models take: warmed up, the device's work awaited, told as quantiles.

The first calls compile kernels and fill caches, so they are not counted. Models that are compared
take turns: whatever slows the machine for a while then slows all of them. In an evaluation a
stopwatch times each pass of the one model there is.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

Name = TypeVar("Name")
Answer = TypeVar("Answer")

WARMUP_PASSES = 3
"""So many passes of each process are not counted in an evaluation."""

_QUANTILES = (50, 90, 99)


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


class Stopwatch:
    """Times the passes of a model in one process."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._passes = 0
        self._seconds: list[float] = []

    def time(self, call: Callable[[], Answer], *, images: int) -> Answer:
        """Run a pass, and note how long each of its images took, once the device is warm."""
        _await(self._device)
        started = time.perf_counter()
        answer = call()
        _await(self._device)
        self._passes += 1
        if self._passes > WARMUP_PASSES:
            self._seconds += [(time.perf_counter() - started) / images] * images
        return answer

    def taken(self) -> tuple[float, ...]:
        """Give the seconds of the images since the last call of this."""
        seconds, self._seconds = tuple(self._seconds), []
        return seconds


def inference_metrics(seconds: Sequence[float]) -> dict[str, float]:
    """Name the quantiles of what images took: inference_ms_p50, _p90 and _p99.

    Args:
        seconds: of each image that was timed; without any there are no numbers.
    """
    if not seconds:
        return {}
    values = 1000 * np.percentile(seconds, _QUANTILES)
    return {
        f"inference_ms_p{percent}": float(value)
        for percent, value in zip(_QUANTILES, values, strict=True)
    }


def format_inference(seconds: Sequence[float]) -> str:
    """Tell the same in a line."""
    if not seconds:
        return f"inference time: not told; the first {WARMUP_PASSES} passes of a process warm it up"
    named = inference_metrics(seconds)
    told = ", ".join(f"{named[f'inference_ms_p{p}']:.1f} (p{p})" for p in _QUANTILES)
    return f"inference time: {told} ms an image, {len(seconds)} images, the model's passes alone"


def _await(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _timing(seconds: list[float]) -> Timing:
    p10, median, p90 = np.quantile(seconds, (0.1, 0.5, 0.9)).tolist()
    return Timing(p10_s=p10, median_s=median, p90_s=p90, calls=len(seconds))
