from types import SimpleNamespace

import pytest

from pipeline.data import ray_pacing


@pytest.mark.parametrize(("blocks", "pauses"), [(0, 0), (1, 1), (5, 1)])
def test_the_loop_pauses_only_while_output_waits_for_the_workers(monkeypatch, blocks, pauses):
    slept = []
    monkeypatch.setattr(ray_pacing.time, "sleep", slept.append)
    output = SimpleNamespace(output_queue=[None] * blocks)
    executor = SimpleNamespace(_output_node=(None, output))
    ray_pacing.PacedScheduling().on_execution_step(executor)
    assert slept == [ray_pacing._PAUSE_S] * pauses
