"""Training on Ray Train workers: neither their number nor a death changes what is trained."""

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
from pipeline.training.loop import Outcome, TrainJob
from pipeline.training.preflight import Checked, check
from pipeline.training.ray_workers import train_on_workers
from pipeline.training.sample_log import merge
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
    """The samples that one process trains, without Ray."""
    recipe = tiny_recipe(shards, folder / "runs", name="reference", num_workers=0)
    checked, outcome = train(recipe)
    assert outcome.step == STEPS
    return digest(checked)


def train(recipe: Recipe, *, break_it=lambda _: None) -> tuple[Checked, Outcome]:
    checked = check(recipe)
    job = TrainJob(
        recipe=checked.recipe,
        identity=checked.identity,
        run_uri=checked.run_uri,
        resume_command="python jobs/tiny.py",
    )
    handle = runs.open_run(recipe)
    break_it(checked)
    if recipe.scale.num_workers == 0:
        return checked, launch._train_here(checked, job, handle)
    return checked, train_on_workers(job, handle=handle)


def digest(checked: Checked) -> str:
    return merge(checked.run_uri, steps=STEPS, global_batch=4)[1]


@contextlib.contextmanager
def one_worker_killed(run_uri: str, *, after_step: int) -> Iterator[list[int]]:
    """Kill -9 the second of two workers once a checkpoint is there."""
    killed: list[int] = []
    over = threading.Event()
    mark = f"{run_uri}/checkpoints/step-{after_step:08d}/checkpoint.json"

    def kill() -> None:
        while not over.is_set():
            if storage.exists(mark):
                pid = max(worker_pids())
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                return
            time.sleep(0.02)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


class Said(logging.Handler):
    """Collects the lines of our own loggers; others may change the handlers of caplog."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def said() -> Iterator[list[str]]:
    ours, handler = logging.getLogger("pipeline"), Said()
    before = ours.level
    ours.setLevel(logging.INFO)
    ours.addHandler(handler)
    yield handler.lines
    ours.removeHandler(handler)
    ours.setLevel(before)


def worker_pids() -> list[int]:
    return [
        process.pid
        for process in psutil.Process().children(recursive=True)
        if process.name().startswith("ray::RayTrainWo")
    ]


def test_a_killed_worker_changes_nothing(shards, folder, one_ray, reference, said):
    recipe = tiny_recipe(shards, folder / "runs", name="killed", num_workers=2)
    with one_worker_killed(f"{recipe.storage}/killed", after_step=5) as killed:
        checked, outcome = train(recipe)
    assert len(killed) == 1
    assert outcome.step == STEPS
    assert outcome.steps_here == STEPS - 5
    assert digest(checked) == reference
    for part in (
        "starting all workers again from the last checkpoint",
        "2 workers are ready, going on from step 5",
        "step 13/13 ",
    ):
        assert sum(part in line for line in said) == 1, said


def test_a_run_of_two_workers_goes_on_without_ray(shards, folder, one_ray, reference):
    recipe = tiny_recipe(shards, folder / "runs", name="handed_over", num_workers=2)
    recipe = replace(recipe, scale=replace(recipe.scale, max_failures=0))
    with (
        one_worker_killed(f"{recipe.storage}/handed_over", after_step=5),
        pytest.raises(TrainingError) as error,
    ):
        train(recipe)
    assert "Go on from the last checkpoint with: python jobs/tiny.py" in str(error.value)
    assert "worker 1" in str(error.value) or "worker 0" in str(error.value)
    alone = replace(recipe, scale=replace(recipe.scale, num_workers=0))
    checked, outcome = train(alone)
    assert outcome.steps_here == STEPS - 5
    assert digest(checked) == reference
    assert checkpoint.find_latest(checked.run_uri).step == STEPS


def test_four_workers_train_the_same_samples(shards, folder, one_ray, reference):
    recipe = tiny_recipe(shards, folder / "runs", name="four", num_workers=4)
    checked, outcome = train(recipe)
    assert outcome.step == STEPS
    assert digest(checked) == reference


def test_what_another_attempt_cannot_help_ends_at_once(shards, folder, one_ray, said):
    recipe = tiny_recipe(shards, folder / "runs", name="hopeless", num_workers=1)

    def lose_a_shard(checked: Checked) -> None:
        first = Path(checked.train_uri, "part-00000.parquet")
        first.rename(first.with_name("kept.bak"))

    try:
        with pytest.raises(PipelineError, match=r"part-00000\.parquet"):
            train(recipe, break_it=lose_a_shard)
    finally:
        kept = Path(recipe.data.root, "train", "kept.bak")
        kept.rename(kept.with_name("part-00000.parquet"))
    assert not any("starting all workers again" in line for line in said)


def test_when_ray_itself_goes_away_the_way_on_is_told(shards, folder, one_ray, monkeypatch):
    def gone(_):
        raise ray.exceptions.ActorDiedError

    monkeypatch.setattr(ray.train.torch.TorchTrainer, "fit", gone)
    recipe = tiny_recipe(shards, folder / "runs", name="gone", num_workers=2)
    with pytest.raises(TrainingError, match=r"(?s)ray status.*python jobs/tiny\.py"):
        train(recipe)
