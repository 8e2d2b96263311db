"""Two processes without Ray reach the weights of one, and all of them report a bad batch."""

import gc
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.recipe import CheckpointConfig, from_json
from pipeline.training import checkpoint, evaluate_checkpoint
from pipeline.training.checkpoint import CheckpointRef
from pipeline.training.loop import Hooks, TrainResult, train
from pipeline.training.step import WorkerContext
from tests.pipeline.training.tiny_training import TinyModel, fake_steps, job_of
from tests.pipeline.training.two_processes import process_group, run_in_two_processes

EVERY = 4
"""Steps between two checkpoints."""


def build(_: object) -> nn.Module:
    model = TinyModel()
    # Each worker samples its own dropout masks; the number of workers changes nothing else.
    model.drop = nn.Identity()
    return model


def evaluate(model, recipe, *, worker: WorkerContext) -> dict[str, float]:
    """Give lower scores from evaluation to evaluation, on rank 0 as the real one."""
    done = len(list(Path(recipe.storage, recipe.name, "measured").glob("*.json")))
    return {"mask_ap": 0.5 / (1 + done)} if worker.rank == 0 else {}


def train_tiny(
    recipe, worker: WorkerContext, *, poisoned: frozenset[int] = frozenset(), resume_from=None
) -> TrainResult:
    return train(
        job_of(recipe),
        worker=worker,
        batches=partial(
            fake_steps,
            steps=10,
            images_per_microbatch=1,
            rank=worker.rank,
            world_size=worker.world_size,
            poisoned=poisoned,
        ),
        hooks=Hooks(build=build),
        resume_from=resume_from,
    )


def resume_from_first_checkpoint(recipe, worker: WorkerContext) -> None:
    """Train a second run from the first checkpoint of the first one, as after a kill."""
    uri = str(Path(recipe.storage, recipe.name, "checkpoints", f"step-{EVERY:08d}"))
    first = CheckpointRef(uri, EVERY)
    train_tiny(replace(recipe, name=f"{recipe.name}-resumed"), worker, resume_from=first)


def main(recipe_json: str, rank: str, rendezvous: str, poisoned: str) -> None:
    """Run in each of the two processes."""
    recipe = from_json(recipe_json)
    with process_group(rank, rendezvous) as worker:
        evaluate_checkpoint.evaluate_on_workers = evaluate
        result = train_tiny(recipe, worker, poisoned=frozenset(json.loads(poisoned)))
        if not result.error:
            resume_from_first_checkpoint(recipe, worker)
        sys.stdout.write(json.dumps({"step": result.step, "error": result.error}))
        # DDP's reducer holds the group, and gloo's threads abort the process if they outlive it.
        gc.collect()


def run_twice(recipe, tmp_path: Path, *, poisoned: list[int]) -> list[dict]:
    module = "tests.pipeline.training.test_training_ddp"
    return run_in_two_processes(module, recipe, tmp_path, json.dumps(poisoned))


@pytest.mark.timeout(150)
def test_two_workers_reach_the_weights_of_one_and_after_a_resume_the_same_bits(
    recipe, tmp_path, monkeypatch
):
    # They also stop early before the same step, as only rank 0 knows the scores.
    patient = CheckpointConfig(every_steps=EVERY, best_metric="mask_ap", patience=1)
    recipe = replace(recipe, checkpoint=patient)
    alone, shared = replace(recipe, name="alone"), replace(recipe, name="shared")
    monkeypatch.setattr(evaluate_checkpoint, "evaluate_on_workers", evaluate)
    train_tiny(alone, WorkerContext())
    results = run_twice(shared, tmp_path, poisoned=[])
    assert [each["step"] for each in results] == [8, 8]
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
    # A sum over two workers has one order, whatever the buckets of DDP are.
    again = CheckpointRef(f"{recipe.storage}/shared-resumed/checkpoints/step-00000008", 8)
    resumed = checkpoint.load(again)["model"]
    assert all(torch.equal(weight, resumed[name]) for name, weight in two.items())


@pytest.mark.timeout(150)
def test_all_workers_name_the_bad_image(recipe, tmp_path):
    # Step 2 has images 8, 9, 0, 1; image 9 is in lane 1, on rank 1.
    results = run_twice(recipe, tmp_path, poisoned=[9])
    for each in results:
        assert each["step"] == 3
        assert "step 2 (epoch 0" in each["error"]
        assert "Images of the batch: 9, 1." in each["error"]
    record = json.loads(Path(recipe.storage, recipe.name, "bad_batch.json").read_text())
    assert [worker["finite"] for worker in record["workers"]] == [True, False]


if __name__ == "__main__":
    main(*sys.argv[1:])
