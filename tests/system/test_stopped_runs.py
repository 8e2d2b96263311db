"""Real processes: SIGTERM writes a checkpoint, and a second process under the name is refused."""

import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import load_file

from pipeline.recipe import Recipe, from_json, to_json
from pipeline.training import checkpoint, launch
from tests.object_stores import child_environment
from tests.pipeline.training.tiny_run import tiny_recipe, write_shards

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 40
JOB = Path(__file__).parents[2] / "jobs" / "train.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("stopped")


@pytest.fixture(scope="module")
def shards(folder) -> Path:
    return write_shards(folder, train_images=12)


@pytest.fixture(scope="module")
def unbroken(shards, folder):
    return launch.run(make_recipe(shards, folder, name="unbroken"))


def make_recipe(shards: Path, folder: Path, *, name: str, num_workers: int = 0) -> Recipe:
    recipe = tiny_recipe(shards, folder / "runs", name=name, num_workers=num_workers)
    return replace(
        recipe,
        optim=replace(recipe.optim, steps=STEPS),
        checkpoint=replace(recipe.checkpoint, every_steps=30),
    )


@contextmanager
def start(recipe, folder: Path, **environment: str):
    """Start a job; kill it at the end if it still runs."""
    file = folder / f"{recipe.name}-{recipe.tracking.log_every}.json"
    file.write_text(to_json(recipe))
    with subprocess.Popen(
        [sys.executable, JOB, file],
        cwd=folder,
        env=child_environment() | {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process, text: str) -> str:
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return "".join(lines)
    raise AssertionError("".join(lines))


def stop_at_step_4(process, recipe, folder: Path) -> str:
    """Send SIGTERM, check the checkpoint and the message, and return all output."""
    before = read_until(process, f"step 4/{STEPS}")
    process.send_signal(signal.SIGTERM)
    text = process.stdout.read()
    assert process.wait() == 143, text
    step = int(re.search(r"stopped by SIGTERM at step (\d+), which has a checkpoint\.", text)[1])
    assert f"Resume with: python {JOB} {folder}/{recipe.name}-" in text
    assert "Traceback" not in text
    run_uri = f"{recipe.storage}/{recipe.name}"
    assert 4 <= checkpoint.find_latest(run_uri).step == step < 30
    assert not list(Path(run_uri, "lock").iterdir())
    return before + text


def test_sigterm_lets_two_workers_write_a_checkpoint_and_one_process_goes_on(
    shards, folder, unbroken, one_ray
):
    recipe = make_recipe(shards, folder, name="two", num_workers=2)
    cluster = ray.get_runtime_context().gcs_address
    with start(recipe, folder, RAY_ADDRESS=cluster) as process:
        stop_at_step_4(process, recipe, folder)
    result = launch.run(replace(recipe, scale=replace(recipe.scale, num_workers=0)))
    assert result["samples_sha256"] == unbroken["samples_sha256"]


@pytest.mark.timeout(600)
def test_one_process_trains_and_after_a_kill_and_a_sigterm_the_weights_are_the_same(
    shards, folder, unbroken
):
    recipe = make_recipe(shards, folder, name="one")
    # They differ, to see which of them writes.
    recipes = [
        replace(recipe, tracking=replace(recipe.tracking, log_every=every)) for every in (2, 4)
    ]
    with start(recipes[0], folder) as first, start(recipes[1], folder) as second:
        while first.poll() is None and second.poll() is None:
            time.sleep(0.05)
        refused, trains = (first, second) if first.poll() is not None else (second, first)
        recipe = recipes[trains is second]
        text = refused.stdout.read()
        assert refused.wait() == 2, text
        assert "is held by " in text
        assert f"(pid {trains.pid}" in text
        assert "Traceback" not in text
        read_until(trains, f"step 4/{STEPS}")
        assert from_json(Path(recipe.storage, "one", "recipe.json").read_text()) == recipe
        trains.kill()
        trains.wait()
    with start(recipe, folder) as third:
        text = stop_at_step_4(third, recipe, folder)
    assert f"taking over {recipe.storage}/one from " in text
    assert "its process is gone" in text
    assert f"step 1/{STEPS}" in text
    result = launch.run(recipe)
    assert result["samples_sha256"] == unbroken["samples_sha256"]
    weights, expected = load_file(result["weights"]), load_file(unbroken["weights"])
    assert all(torch.equal(value, weights[key]) for key, value in expected.items())


def test_sigterm_before_training_ends_at_once_with_the_command(shards, folder):
    recipe = make_recipe(shards, folder, name="early")
    with start(recipe, folder) as process:
        read_until(process, "recipe early")
        lock = Path(recipe.storage, "early", "lock")
        while process.poll() is None and not lock.exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        text = process.stdout.read()
        assert process.wait() == 143, text
    assert re.search(r"stopped by SIGTERM.*\. Resume with: python ", text)
    assert "Traceback" not in text
