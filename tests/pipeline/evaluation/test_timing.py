"""Timing skips warm-up calls, alternates functions, and returns quantiles of single calls."""

import pytest
import torch

from pipeline.evaluation import timing
from pipeline.evaluation.timing import time_calls


def test_time_calls_skips_warm_up_and_alternates(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    order = []
    # The first two calls are slow, then each takes longer than the one before.
    seconds = {"a": [50.0, 50.0, *range(11)], "b": [7.0] * 13}

    def work(name: str) -> None:
        nonlocal now_s
        now_s += seconds[name][order.count(name)]
        order.append(name)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now_s)
    timed = time_calls(
        {"a": lambda: work("a"), "b": lambda: work("b")},
        device=torch.device("cpu"),
        calls=11,
        warmup_calls=2,
    )
    assert order == ["a", "b"] * 13
    assert timed["a"] == timing.Timing(p10_s=1, median_s=5, p90_s=9, calls=11)
    assert timed["b"] == timing.Timing(p10_s=7, median_s=7, p90_s=7, calls=11)
