"""Two processes, without Ray: the same weights as one, and bad batches that all of them know of."""

import gc
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from pipeline.recipe import from_json
from pipeline.training import checkpoint
from pipeline.training.loop import Hooks, Outcome, train
from pipeline.training.step import World
from tests.pipeline.training import two_processes
from tests.pipeline.training.tiny_training import TinyModel, fake_steps, job_of


def build(_: object) -> nn.Module:
    model = TinyModel()
    # Each worker draws its own dropout; without it the number of workers changes nothing.
    model.drop = nn.Identity()
    return model


def work(recipe, *, rank: int, world_size: int, poisoned: frozenset[int]) -> Outcome:
    return train(
        job_of(recipe),
        world=World(rank=rank, size=world_size),
        batches=partial(
            fake_steps,
            steps=10,
            images_per_microbatch=1,
            rank=rank,
            world_size=world_size,
            poisoned=poisoned,
        ),
        hooks=Hooks(build=build),
        place=None,
    )


def main(recipe_json: str, rank: str, rendezvous: str, poisoned: str) -> None:
    """What each of the two processes runs."""
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=int(rank), world_size=2
    )
    recipe = from_json(recipe_json)
    outcome = work(recipe, rank=int(rank), world_size=2, poisoned=frozenset(json.loads(poisoned)))
    sys.stdout.write(json.dumps({"step": outcome.step, "bad": outcome.bad}))
    # The model's reducer holds the group, and gloo's threads abort the process if they outlive it:
    # let go of the model, and leave together.
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


def in_two_processes(recipe, tmp_path: Path, *, poisoned: list[int]) -> list[dict]:
    module = "tests.pipeline.training.test_training_ddp"
    return two_processes.in_two_processes(module, recipe, tmp_path, json.dumps(poisoned))


@pytest.mark.timeout(150)
def test_two_workers_reach_the_weights_of_one(recipe, tmp_path):
    alone, shared = replace(recipe, name="alone"), replace(recipe, name="shared")
    work(alone, rank=0, world_size=1, poisoned=frozenset())
    ended = in_two_processes(shared, tmp_path, poisoned=[])
    assert [one["step"] for one in ended] == [10, 10]
    one, two = (
        checkpoint.load(checkpoint.find_latest(f"{recipe.storage}/{name}"))["model"]
        for name in ("alone", "shared")
    )
    for name, weight in one.items():
        torch.testing.assert_close(weight, two[name], rtol=1e-4, atol=1e-6)
    lists = [
        [path.read_text() for path in sorted(Path(recipe.storage, name, "samples").glob("*.csv"))]
        for name in ("alone", "shared")
    ]
    assert lists[0] == lists[1]


@pytest.mark.timeout(150)
def test_the_worker_with_the_bad_image_is_named_by_all(recipe, tmp_path):
    # Step 2 holds images 8, 9, 0, 1; image 9 is in lane 1, so with rank 1.
    ended = in_two_processes(recipe, tmp_path, poisoned=[9])
    for one in ended:
        assert one["step"] == 3
        assert "step 2 (epoch 0" in one["bad"]
        assert "Images of the batch: 9, 1." in one["bad"]
    record = json.loads(Path(recipe.storage, recipe.name, "bad_batch.json").read_text())
    assert [worker["finite"] for worker in record["workers"]] == [True, False]


if __name__ == "__main__":
    main(*sys.argv[1:])
