"""On Ray Train, neither the number of workers nor a killed worker changes the trained samples."""

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray.train.torch

from pipeline import storage
from pipeline.errors import PipelineError, TrainingError
from pipeline.recipe import Recipe
from pipeline.tracking import runs
from pipeline.training import checkpoint, launch
from pipeline.training.loop import TrainJob, TrainResult
from pipeline.training.preflight import PreparedRun, prepare_run
from pipeline.training.ray_workers import train_on_workers
from pipeline.training.sample_log import merge_sample_lists
from tests.pipeline.training.tiny_run import tiny_recipe, write_shards

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

STEPS = 13


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def shards(folder) -> Path:
    return write_shards(folder)


@pytest.fixture(scope="module")
def reference(shards, folder) -> str:
    """Hash of the samples that one process trains without Ray."""
    recipe = tiny_recipe(shards, folder / "runs", name="reference", num_workers=0)
    prepared, result = train(recipe)
    assert result.step == STEPS
    return hash_samples(prepared)


def train(recipe: Recipe, *, before_training=lambda _: None) -> tuple[PreparedRun, TrainResult]:
    prepared = prepare_run(recipe)
    job = TrainJob(
        recipe=prepared.recipe,
        identity=prepared.identity,
        run_uri=prepared.run_uri,
        resume_command="python jobs/tiny.py",
    )
    handle = runs.open_run(recipe)
    before_training(prepared)
    if recipe.scale.num_workers == 0:
        return prepared, launch._train_here(prepared, job, handle)
    return prepared, train_on_workers(job, handle=handle)


def hash_samples(prepared: PreparedRun) -> str:
    return merge_sample_lists(prepared.run_uri, steps=STEPS, global_batch=4)[1]


@contextlib.contextmanager
def kill_one_worker(run_uri: str, *, after_step: int) -> Iterator[list[int]]:
    """Kill -9 the second of two workers after a checkpoint."""
    killed: list[int] = []
    stop = threading.Event()
    file = f"{run_uri}/checkpoints/step-{after_step:08d}/checkpoint.json"

    def kill() -> None:
        while not stop.is_set():
            if storage.exists(file):
                pid = max(list_worker_pids())
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                return
            time.sleep(0.02)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join()


class LineHandler(logging.Handler):
    """Collects the lines of our loggers; Ray may change the handlers of caplog."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def lines() -> Iterator[list[str]]:
    ours, handler = logging.getLogger("pipeline"), LineHandler()
    before = ours.level
    ours.setLevel(logging.INFO)
    ours.addHandler(handler)
    yield handler.lines
    ours.removeHandler(handler)
    ours.setLevel(before)


def list_worker_pids() -> list[int]:
    return [
        process.pid
        for process in psutil.Process().children(recursive=True)
        if process.name().startswith("ray::RayTrainWo")
    ]


def test_a_killed_worker_does_not_change_the_samples(shards, folder, one_ray, reference, lines):
    recipe = tiny_recipe(shards, folder / "runs", name="killed", num_workers=2)
    with kill_one_worker(f"{recipe.storage}/killed", after_step=5) as killed:
        prepared, result = train(recipe)
    assert len(killed) == 1
    assert result.step == STEPS
    assert result.steps_here == STEPS - 5
    assert hash_samples(prepared) == reference
    for part in (
        "restarting all workers from the last checkpoint",
        "2 workers ready, resuming from step 5",
        "step 13/13 ",
    ):
        assert sum(part in line for line in lines) == 1, lines


def test_a_run_of_two_workers_resumes_without_ray(shards, folder, one_ray, reference):
    recipe = tiny_recipe(shards, folder / "runs", name="handed_over", num_workers=2)
    recipe = replace(recipe, scale=replace(recipe.scale, max_failures=0))
    with (
        kill_one_worker(f"{recipe.storage}/handed_over", after_step=5),
        pytest.raises(TrainingError) as error,
    ):
        train(recipe)
    assert "Resume from the last checkpoint with: python jobs/tiny.py" in str(error.value)
    assert "worker 1" in str(error.value) or "worker 0" in str(error.value)
    alone = replace(recipe, scale=replace(recipe.scale, num_workers=0))
    prepared, result = train(alone)
    assert result.steps_here == STEPS - 5
    assert hash_samples(prepared) == reference
    assert checkpoint.find_latest(prepared.run_uri).step == STEPS


def test_four_workers_train_the_same_samples(shards, folder, one_ray, reference):
    recipe = tiny_recipe(shards, folder / "runs", name="four", num_workers=4)
    prepared, result = train(recipe)
    assert result.step == STEPS
    assert hash_samples(prepared) == reference


def test_a_permanent_error_ends_the_run_at_once(shards, folder, one_ray, lines):
    recipe = tiny_recipe(shards, folder / "runs", name="permanent", num_workers=1)

    def lose_a_shard(prepared: PreparedRun) -> None:
        first = Path(prepared.train_uri, "part-00000.parquet")
        first.rename(first.with_name("kept.bak"))

    try:
        with pytest.raises(PipelineError, match=r"part-00000\.parquet"):
            train(recipe, before_training=lose_a_shard)
    finally:
        kept = Path(recipe.data.root, "train", "kept.bak")
        kept.rename(kept.with_name("part-00000.parquet"))
    assert not any("restarting all workers" in line for line in lines)


def test_when_ray_stops_the_error_has_the_resume_command(shards, folder, one_ray, monkeypatch):
    def gone(_):
        raise ray.exceptions.ActorDiedError

    monkeypatch.setattr(ray.train.torch.TorchTrainer, "fit", gone)
    recipe = tiny_recipe(shards, folder / "runs", name="gone", num_workers=2)
    with pytest.raises(TrainingError, match=r"(?s)ray status.*python jobs/tiny\.py"):
        train(recipe)
