"""A run whose Ray is gone is interrupted, instead of waiting for it."""

import signal
import threading
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
    stop, given_up = StopRequest(), []
    loss = RayLoss(stop, give_up=given_up.append)
    started_s = time.monotonic()
    with interrupt_if_ray_is_lost(loss):
        time.sleep(0.5)
        assert loss.error is None, "a head may come back within seconds"
    stop.lose("asked to stop")
    loss = RayLoss(stop, give_up=given_up.append)
    with (
        pytest.raises(RayLostError, match="accepts no connections"),
        interrupt_if_ray_is_lost(loss),
    ):
        time.sleep(30)
    assert loss.error is not None
    assert time.monotonic() - started_s < 20
    assert given_up == []


def test_a_main_thread_that_cannot_be_interrupted_is_given_up(monkeypatch):
    """Ray's own code may wait for its head without a look at signals."""
    monkeypatch.setattr(ray_loss, "_LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(ray_loss, "_LOST_AFTER_S", 0.1)
    monkeypatch.setattr(ray_loss, "_INTERRUPTED_AFTER_S", 0.1)
    monkeypatch.setattr(signal, "pthread_kill", lambda *_: None)
    given_up: list[Exception] = []
    loss = RayLoss(StopRequest(), give_up=given_up.append)
    loss.watch(f"127.0.0.1:{find_free_port()}", threading.get_ident())
    assert given_up == [loss.error]
