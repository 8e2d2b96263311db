"""Trials run only as far as the cluster has capacity, and stopped ones free their workers."""

import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

from jobs.sweep_quickstart import SWEEP
from pipeline.tuning import concurrency
from pipeline.tuning.concurrency import count_concurrent_trials, count_fitting_runs, release_workers


def test_a_trial_needs_its_workers_and_a_cpu_for_the_data():
    """More trials than fit would wait for each other forever."""
    scale = replace(SWEEP.recipe.scale, num_workers=2, use_gpu=False, cpus_per_worker=1.0)
    fitting = [count_fitting_runs(scale, {"CPU": cpus}) for cpus in (2.0, 3.0, 5.9, 6.0)]
    assert fitting == [0, 1, 1, 2]
    gpus = replace(scale, use_gpu=True)
    assert count_fitting_runs(gpus, {"CPU": 100.0, "GPU": 5.0}) == 2
    assert count_fitting_runs(gpus, {"CPU": 100.0}) == 0


@pytest.mark.parametrize(
    ("cpus", "parallel", "count"),
    [(9.0, 0, 3), (9.0, 2, 2), (9.0, 5, 3), (0.0, 0, 1), (0.0, 4, 4)],
)
def test_the_sweep_limits_trials_and_the_cluster_limits_the_sweep(
    cpus, parallel, count, monkeypatch
):
    """A cluster without nodes yet does not limit anything."""
    monkeypatch.setattr(concurrency.ray, "cluster_resources", lambda: {"CPU": cpus})
    assert count_concurrent_trials(replace(SWEEP, parallel=parallel)) == count


def test_workers_are_freed_once_the_controller_is_dead(monkeypatch):
    removed, freed = [], threading.Event()
    states = iter([SimpleNamespace(state="ALIVE"), SimpleNamespace(state="DEAD")])

    def remove(group):
        removed.append(group.id.hex())
        freed.set()

    monkeypatch.setattr(concurrency, "_POLL_EVERY_S", 0.01)
    monkeypatch.setattr(concurrency, "get_actor", lambda *_args, **_kwargs: next(states))
    monkeypatch.setattr(concurrency, "remove_placement_group", remove)
    monkeypatch.setattr(concurrency.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(
        concurrency.ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="here")
    )
    release_workers({"step": 2})
    group = "ab" * 18
    release_workers({"controller": "c0", "placement_group": group})
    assert freed.wait(timeout=10)
    assert removed == [group]
    assert next(states, None) is None
