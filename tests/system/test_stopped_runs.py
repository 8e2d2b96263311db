"""Real processes: SIGTERM writes a checkpoint, and a second process under the name is refused.

test_training_ray.py terminates a run on workers.
"""

import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.recipe import Recipe, from_json
from pipeline.training import launch
from tests.pipeline.training.tiny_run import tiny_recipe, write_shards
from tests.system.train_process import read_until, start, terminate

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("stopped")


@pytest.fixture(scope="module")
def shards(folder) -> Path:
    return write_shards(folder, train_images=12)


@pytest.fixture(scope="module")
def unbroken(shards, folder):
    return launch.run(make_recipe(shards, folder, name="unbroken"))


def make_recipe(shards: Path, folder: Path, *, name: str) -> Recipe:
    recipe = tiny_recipe(shards, folder / "runs", name=name, num_workers=0)
    return replace(
        recipe,
        optim=replace(recipe.optim, steps=STEPS),
        checkpoint=replace(recipe.checkpoint, every_steps=30),
    )


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
        read_until(trains, f"step 4/{STEPS} ")
        assert from_json(Path(recipe.storage, "one", "recipe.json").read_text()) == recipe
        trains.kill()
        trains.wait()
    with start(recipe, folder) as third:
        text = read_until(third, f"step 4/{STEPS} ")
        rest, step = terminate(third, recipe, folder)
    assert 4 <= step < 30
    text += rest
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
        read_until(process, r"recipe +early")
        lock = Path(recipe.storage, "early", "lock")
        while process.poll() is None and not lock.exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        text = process.stdout.read()
        assert process.wait() == 143, text
    assert re.search(r"stopped by SIGTERM.*\. Resume with: python ", text)
    assert "Traceback" not in text
