"""Training workers together get the same metrics as one process."""

import json
import math
import sys
from dataclasses import replace

import pytest
import torch

from bsm.build import build_model
from pipeline.evaluation.evaluate import evaluate_model
from pipeline.recipe import from_json
from pipeline.training.evaluate_checkpoint import evaluate_on_workers
from pipeline.training.step import WorkerContext
from pipeline.training.validation_loss import compute_validation_losses
from tests.pipeline.training.tiny_run import tiny_recipe, write_shards
from tests.pipeline.training.two_processes import process_group, run_in_two_processes

TIMINGS = ("seconds", "images_per_s", "inference_ms")


def build(recipe):
    torch.manual_seed(3)
    return build_model(recipe.model)


def main(recipe_json: str, rank: str, rendezvous: str) -> None:
    """Run in each of the two processes."""
    recipe = from_json(recipe_json)
    with process_group(rank, rendezvous) as worker:
        model = build(recipe).train()
        metrics = evaluate_on_workers(model, recipe, worker=worker)
        losses = compute_validation_losses(model, recipe, worker=worker)
        found = {"metrics": metrics, "losses": losses, "training": model.training}
        sys.stdout.write(json.dumps(found))


@pytest.mark.timeout(180)
def test_two_workers_get_the_metrics_of_one_process(tmp_path):
    shards = write_shards(tmp_path, train_images=4, val_images=20)
    recipe = tiny_recipe(shards, tmp_path / "runs", name="measured", num_workers=0)
    # Evaluate masks in the ground-truth boxes: random weights detect nothing useful.
    recipe = replace(recipe, evaluation=replace(recipe.evaluation, max_images=None, boxes="truth"))
    module = "tests.pipeline.training.test_evaluate_checkpoint"
    first, second = run_in_two_processes(module, recipe, tmp_path)
    alone = evaluate_model(
        build(recipe).eval(), f"{shards}/val", recipe.data, recipe.evaluation
    ).metrics
    expected = {name: value for name, value in alone.items() if math.isfinite(value)}
    same = {name for name in expected if not name.startswith((*TIMINGS, "images"))}
    assert {"mask_ap", "boundary_ap", "boundary_iou"} <= same
    assert expected["boundary_iou"] > 0
    assert {name: first["metrics"][name] for name in same} == {n: expected[n] for n in same}
    assert second["metrics"] == second["losses"] == {}
    losses = compute_validation_losses(build(recipe), recipe, worker=WorkerContext())
    assert {"val_loss", "val_loss_mask", "val_loss_class"} < losses.keys()
    assert first["losses"] == losses
    assert first["training"]
    assert second["training"]


if __name__ == "__main__":
    main(*sys.argv[1:])
