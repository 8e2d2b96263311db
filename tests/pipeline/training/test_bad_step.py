"""A bad step is saved with all that repeats it, and is repeated alone with the same losses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pipeline.data.stream import local_batches
from pipeline.errors import TrainingError
from pipeline.training import launch
from pipeline.training.bad_step import replay
from tests.pipeline.training.tiny_run import tiny_recipe, write_shards


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    shards = write_shards(folder, train_images=8)
    recipe = tiny_recipe(shards, folder / "runs", name="wild", num_workers=0)
    optim = replace(recipe.optim, lr_per_image=1e9, warmup_steps=0)
    return replace(recipe, optim=optim, scale=replace(recipe.scale, images_per_microbatch=2))


@pytest.fixture(scope="module")
def run(recipe) -> Path:
    with pytest.raises(TrainingError, match="not finite"):
        launch.run(recipe)
    return Path(recipe.storage, recipe.name)


def test_a_bad_step_is_repeated_with_the_same_losses(run):
    record = json.loads((run / "bad_batch.json").read_text())
    assert record["later_steps"] == 0
    assert record["step"] > 0, "the weights are not those of the start"
    again = replay(str(run))
    assert again["step"] == record["step"]
    assert again["is_same"]
    assert set(again["bad_images"]) <= set(record["image_ids"])


def test_other_weights_give_other_losses(run, recipe):
    tensors = load_file(run / "bad_batch.safetensors")
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    record = json.loads((run / "bad_batch.json").read_text())
    losses = record["workers"][0]["losses"]
    name = next(name for name in losses if name.startswith("loss"))
    losses[name] = 123.0
    changed = run.parent / "changed"
    changed.mkdir()
    for file in ("bad_batch.safetensors", "recipe.json"):
        (changed / file).write_bytes((run / file).read_bytes())
    (changed / "bad_batch.json").write_text(json.dumps(record))
    assert not replay(str(changed))["is_same"]


def test_the_lanes_of_a_worker_are_read_alone(recipe):
    def read(lanes=None):
        batches = local_batches(
            f"{recipe.data.root}/train", recipe.data, seed=recipe.seed, global_batch=4,
            images_per_microbatch=1, first_step=3, stop_step=4, lanes=lanes,
        )  # fmt: skip
        return [batch.image_id.item() for batch in next(iter(batches)).microbatches]

    assert read(range(1, 4, 2)) == read()[1::2]


def test_a_run_without_a_bad_step_says_so(tmp_path):
    with pytest.raises(TrainingError, match=r"has no bad_batch\.json"):
        replay(str(tmp_path))
