"""The worker that the others wait for is named; noise is not."""

import time
from types import SimpleNamespace

import torch

from pipeline.training import step
from pipeline.training.step import StepMetrics, WorkerContext
from pipeline.training.straggler import StragglerReport, find_slowest


def report(*windows, seconds=10):
    says = StragglerReport()
    return [says.add(own_s, seconds=seconds) for own_s in windows]


def test_a_worker_that_stays_slow_is_named_once():
    slow = (3.0, 9.0, 2.0, 3.0)
    assert find_slowest(slow, seconds=10)[:2] == (1, 3.0)
    first, named, *later = report(*[slow] * 5)
    assert (first, later) == (None, [None] * 3)
    assert named[0] == 1
    assert "takes 3.0 times as long as that of the others" in named[1]


def test_a_moment_equal_workers_and_short_times_are_noise():
    slow, other, equal = (3.0, 8.0), (8.0, 3.0), (3.0, 3.5)
    assert report(slow, equal, slow, equal) == [None] * 4
    assert report(slow, other, slow, other) == [None] * 4
    # Three times as long, but the step hardly consists of it.
    assert report(*[(0.1, 0.3)] * 5) == [None] * 5
    # Log lines every second count together.
    assert report(*[(0.3, 0.8), (0.8, 0.3)] * 10, seconds=1) == [None] * 20
    assert [bool(each) for each in report(*[(0.3, 0.8)] * 20, seconds=1)] == [False] * 19 + [True]
    assert find_slowest((3.0,), seconds=10) is None


def test_the_wait_for_other_workers_is_not_a_workers_own_time(monkeypatch):
    monkeypatch.setattr(step, "gather_rows", lambda row, worker: torch.stack([row, row]))
    metrics = StepMetrics(WorkerContext(world_size=2))
    time.sleep(0.05)
    with metrics.clock.measure():
        time.sleep(0.2)
    output = step.StepOutput(("loss", step.GRADIENT_NORM), torch.ones(2))
    batch = SimpleNamespace(image_id=torch.tensor([1]))
    metrics.add(output, step=0, epoch=0, lr=0.1, microbatches=(batch,))
    summary = metrics.reduce()
    assert summary.seconds >= 0.25
    assert 0.05 <= summary.own_s[1] < summary.seconds - 0.19
    assert summary.means == {"loss": 1.0, step.GRADIENT_NORM: 1.0}
