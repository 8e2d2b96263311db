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
import torch
from safetensors.torch import load_file

from pipeline.recipe import Recipe, to_json
from pipeline.training import checkpoint, launch
from tests.object_stores import child_environment
from tests.pipeline.training.tiny_run import tiny_recipe, write_shards

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

STEPS = 80
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
        checkpoint=replace(recipe.checkpoint, every_steps=50),
    )


@contextmanager
def start(recipe, folder: Path):
    """Start a job; kill it at the end if it still runs."""
    file = folder / f"{recipe.name}.json"
    file.write_text(to_json(recipe))
    with subprocess.Popen(
        [sys.executable, JOB, file],
        cwd=folder,
        env=child_environment() | {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"},
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


@pytest.mark.parametrize("num_workers", [0, 2])
def test_sigterm_writes_a_checkpoint_and_the_same_command_goes_on(
    shards, folder, unbroken, num_workers
):
    name = f"stopped-{num_workers}"
    recipe = make_recipe(shards, folder, name=name, num_workers=num_workers)
    with start(recipe, folder) as process:
        read_until(process, f"step 4/{STEPS}")
        process.send_signal(signal.SIGTERM)
        text = process.stdout.read()
        assert process.wait() == 143, text
    step = int(re.search(r"stopped by SIGTERM at step (\d+), which has a checkpoint\.", text)[1])
    assert f"Resume with: python {JOB} {folder}/{name}.json" in text
    assert "Traceback" not in text
    run_uri = f"{recipe.storage}/{name}"
    assert 4 <= checkpoint.find_latest(run_uri).step == step < 50
    assert not list(Path(run_uri, "lock").iterdir())
    result = launch.run(replace(recipe, scale=replace(recipe.scale, num_workers=0)))
    assert result["samples_sha256"] == unbroken["samples_sha256"]
    if num_workers == 0:
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


def test_a_second_process_is_refused_before_it_writes(shards, folder):
    recipe = make_recipe(shards, folder, name="twice")
    with start(recipe, folder) as first:
        read_until(first, f"step 4/{STEPS}")
        before = Path(recipe.storage, "twice", "recipe.json").stat().st_mtime_ns
        with start(recipe, folder) as second:
            text = second.stdout.read()
            assert second.wait() == 2, text
        assert "is held by " in text
        assert f"(pid {first.pid}" in text
        assert "Traceback" not in text
        assert Path(recipe.storage, "twice", "recipe.json").stat().st_mtime_ns == before
        first.kill()
        first.wait()
    with start(recipe, folder) as third:
        text = read_until(third, f"step 1/{STEPS}")
    assert f"taking over {recipe.storage}/twice from " in text
    assert "its process is gone" in text
