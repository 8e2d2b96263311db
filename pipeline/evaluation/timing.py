"""Time models: after a warm-up, with synchronized devices, as quantiles.

The first calls compile kernels and fill caches, so they are not counted. Models to compare take
turns, so that a temporary slowdown of the machine affects all of them. In an evaluation, a
stopwatch times the forward passes of the model.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from pipeline.text import format_count

Name = TypeVar("Name")
Result = TypeVar("Result")

WARMUP_PASSES = 3
"""Forward passes per process that an evaluation does not count."""

_QUANTILES = (50, 90, 99)


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Duration of a call, in quantiles."""

    p10_s: float
    median_s: float
    p90_s: float
    calls: int
    """Number of timed calls."""


def time_calls(
    work: Mapping[Name, Callable[[], object]],
    *,
    device: torch.device,
    calls: int = 30,
    warmup_calls: int = 5,
) -> dict[Name, Timing]:
    """Time functions that run on a device, in turns.

    Args:
        work: functions by name, such as `lambda: model(images, sizes_hw)` in inference mode.
        device: synchronized before and after each call, if it is a GPU.
        calls: number of timed calls of each function.
        warmup_calls: number of calls of each function before that.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in work}
    for turn in range(warmup_calls + calls):
        for name, call in work.items():
            _synchronize(device)
            started = time.perf_counter()
            call()
            _synchronize(device)
            if turn >= warmup_calls:
                seconds[name].append(time.perf_counter() - started)
    return {name: _summarize(each) for name, each in seconds.items()}


class Stopwatch:
    """Times the forward passes of a model in one process."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._passes = 0
        self._seconds: list[float] = []

    def time(self, call: Callable[[], Result], *, images: int) -> Result:
        """Run a forward pass, and record the time per image unless it is a warm-up pass."""
        _synchronize(self._device)
        started = time.perf_counter()
        result = call()
        _synchronize(self._device)
        self._passes += 1
        if self._passes > WARMUP_PASSES:
            self._seconds += [(time.perf_counter() - started) / images] * images
        return result

    def pop_seconds(self) -> tuple[float, ...]:
        """Return the recorded time of each image, and forget it."""
        seconds, self._seconds = tuple(self._seconds), []
        return seconds


def inference_metrics(seconds: Sequence[float]) -> dict[str, float]:
    """Compute quantiles of the inference time: inference_ms_p50, _p90 and _p99.

    Args:
        seconds: of each image that was timed; if there are none, the result is empty.
    """
    if not seconds:
        return {}
    values = 1000 * np.percentile(seconds, _QUANTILES)
    return {
        f"inference_ms_p{percent}": float(value)
        for percent, value in zip(_QUANTILES, values, strict=True)
    }


def format_inference(seconds: Sequence[float]) -> str:
    """Format the quantiles in one line."""
    if not seconds:
        return f"inference time: not measured; the first {WARMUP_PASSES} passes are warm-up"
    named = inference_metrics(seconds)
    shown = ", ".join(f"{named[f'inference_ms_p{p}']:.1f} (p{p})" for p in _QUANTILES)
    images = format_count(len(seconds), "image")
    return f"inference time: {shown} ms per image, {images}, forward pass only"


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _summarize(seconds: list[float]) -> Timing:
    p10, median, p90 = np.quantile(seconds, (0.1, 0.5, 0.9)).tolist()
    return Timing(p10_s=p10, median_s=median, p90_s=p90, calls=len(seconds))
