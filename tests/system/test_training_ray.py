"""On Ray Train, neither the number of workers nor killed workers change the trained samples."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray.train.torch

from pipeline import storage
from pipeline.errors import PipelineError, TrainingError
from pipeline.recipe import Recipe
from pipeline.tracking import runs
from pipeline.training import launch
from pipeline.training.loop import TrainJob, TrainResult
from pipeline.training.preflight import PreparedRun, prepare_run
from pipeline.training.ray_workers import train_on_workers
from pipeline.training.sample_log import merge_sample_lists
from tests.logged_lines import collect_lines
from tests.pipeline.training.tiny_run import tiny_recipe, write_shards
from tests.system.train_process import read_until, start, terminate

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

STEPS = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def shards(folder) -> Path:
    return write_shards(folder)


@pytest.fixture(scope="module")
def reference(shards, folder) -> str:
    """Hash of the samples that one process trains without Ray."""
    prepared, result = train(make_recipe(shards, folder, name="reference", num_workers=0))
    assert result.step == STEPS
    return hash_samples(prepared)


def make_recipe(shards: Path, folder: Path, *, name: str, num_workers: int) -> Recipe:
    recipe = tiny_recipe(shards, folder / "runs", name=name, num_workers=num_workers)
    return replace(recipe, optim=replace(recipe.optim, steps=STEPS))


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
def kill_twice(run_uri: str, lines: list[str]) -> Iterator[dict[str, set[str]]]:
    """Kill -9 a worker after the checkpoint of step 5, and one of those that go on from there.

    Yields:
        The libraries of Ray's processes before the first is killed, by the actor's name.
    """
    libraries: dict[str, set[str]] = {}
    stop = threading.Event()

    def wait_for(condition: Callable[[], bool]) -> bool:
        while not condition() and not stop.is_set():
            time.sleep(0.02)
        return not stop.is_set()

    def kill() -> None:
        saved = f"{run_uri}/checkpoints/step-00000005/checkpoint.json"
        if wait_for(lambda: storage.exists(saved)):
            libraries.update(list_libraries())
            os.kill(max(list_worker_pids()), signal.SIGKILL)
        if wait_for(lambda: any("resuming from step 5" in line for line in lines)):
            os.kill(max(list_worker_pids()), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield libraries
    finally:
        stop.set()
        thread.join()


def list_libraries() -> dict[str, set[str]]:
    """Return which of torch and torchvision Ray's processes have loaded, by the actor's name."""
    found: dict[str, set[str]] = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error, IndexError):
            actor = process.cmdline()[0].partition("ray::")[2].partition(".")[0]
            files = "".join(each.path for each in process.memory_maps())
            loaded = {name for name in ("torch", "torchvision") if f"/{name}/" in files}
            found[actor] = found.get(actor, set()) | loaded
    return found


@pytest.fixture
def lines() -> Iterator[list[str]]:
    with collect_lines() as found:
        yield found


def list_worker_pids() -> list[int]:
    return [
        process.pid
        for process in psutil.Process().children(recursive=True)
        if process.name().startswith("ray::RayTrainWo")
    ]


@pytest.mark.timeout(600)
def test_neither_kills_nor_sigterm_nor_the_number_of_workers_change_the_samples(
    shards, folder, one_ray, reference, lines
):
    recipe = make_recipe(shards, folder, name="killed", num_workers=2)
    recipe = replace(recipe, scale=replace(recipe.scale, max_failures=1))
    with (
        kill_twice(f"{recipe.storage}/killed", lines) as libraries,
        pytest.raises(TrainingError) as error,
    ):
        train(recipe)
    for part in (
        "restarting all workers from the last checkpoint",
        "2 workers ready, resuming from step 5",
    ):
        assert sum(part in line for line in lines) == 1, lines
    assert "after 1 restart" in str(error.value)
    assert "Resume from the last checkpoint with: python jobs/tiny.py" in str(error.value)
    assert "worker 1" in str(error.value) or "worker 0" in str(error.value)
    # Only Ray's own code imports torch in the controller.
    loaded = {"_Relay": set(), "SplitCoordinator": set(), "TrainController": {"torch"}}
    assert {name: libraries[name] for name in loaded} == loaded
    assert libraries["RayTrainWorker"] == {"torch", "torchvision"}

    # Four workers go on until SIGTERM, and one process without Ray trains the rest.
    four = replace(recipe, scale=replace(recipe.scale, num_workers=4))
    cluster = ray.get_runtime_context().gcs_address
    with start(four, folder, RAY_ADDRESS=cluster) as process:
        read_until(process, r"4 workers ready, resuming from step ")
        read_until(process, rf"step \d+/{STEPS} ")
        _, step = terminate(process, four, folder)
    assert 5 < step < STEPS
    prepared, result = train(replace(recipe, scale=replace(recipe.scale, num_workers=0)))
    assert result.steps_here == STEPS - step
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
