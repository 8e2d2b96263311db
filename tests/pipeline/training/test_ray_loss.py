"""A run whose Ray is gone is interrupted, instead of waiting for it."""

import time
from types import SimpleNamespace

import pytest

from pipeline.training import ray_loss
from pipeline.training.ray_loss import RayLoss, RayLostError, interrupt_if_ray_is_lost
from pipeline.training.stop import StopRequest
from tests.object_stores import find_free_port


def test_a_head_that_is_gone_interrupts_the_run(monkeypatch):
    gone = SimpleNamespace(gcs_address=f"127.0.0.1:{find_free_port()}")
    monkeypatch.setattr("ray.get_runtime_context", lambda: gone)
    monkeypatch.setattr(ray_loss, "_LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(ray_loss, "_LOST_AFTER_SIGTERM_S", 0.1)
    stop = StopRequest()
    loss = RayLoss(stop)
    started_s = time.monotonic()
    with interrupt_if_ray_is_lost(loss):
        time.sleep(0.5)
        assert loss.error is None, "a head may come back within seconds"
    stop.lose("asked to stop")
    loss = RayLoss(stop)
    with (
        pytest.raises(RayLostError, match="accepts no connections"),
        interrupt_if_ray_is_lost(loss),
    ):
        time.sleep(30)
    assert loss.error is not None
    assert time.monotonic() - started_s < 20
