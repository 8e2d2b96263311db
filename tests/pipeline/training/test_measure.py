"""What workers measure together while they train is what one process measures."""

import json
import sys
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from bsm.build import build_model
from pipeline.evaluation.evaluate import evaluate_model
from pipeline.recipe import from_json
from pipeline.training.evaluate_checkpoint import measure
from pipeline.training.step import World
from tests.pipeline.training.tiny_run import tiny_recipe, write_shards
from tests.pipeline.training.two_processes import in_two_processes

TIMES = ("seconds", "images_per_s", "inference_ms")


def model_of(recipe):
    torch.manual_seed(3)
    return build_model(recipe.model)


def main(recipe_json: str, rank: str, rendezvous: str) -> None:
    """What each of the two processes runs."""
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=int(rank), world_size=2
    )
    recipe = from_json(recipe_json)
    model = model_of(recipe).train()
    metrics = measure(model, recipe, world=World(rank=int(rank), size=2))
    sys.stdout.write(json.dumps({"metrics": metrics, "training": model.training}))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.timeout(180)
def test_two_workers_measure_what_one_process_does(tmp_path):
    shards = write_shards(tmp_path, train_images=4, val_images=20)
    recipe = tiny_recipe(shards, tmp_path / "runs", name="measured", num_workers=0)
    # Masks in the boxes of the truth: random weights find nothing that would count.
    recipe = replace(recipe, evaluation=replace(recipe.evaluation, max_images=None, boxes="truth"))
    module = "tests.pipeline.training.test_measure"
    first, second = in_two_processes(module, recipe, tmp_path)
    alone = evaluate_model(
        model_of(recipe).eval(), f"{shards}/val", recipe.data, recipe.evaluation
    ).metrics
    expected = {name: value for name, value in alone.items() if value == value}  # noqa: PLR0124
    same = {name for name in expected if not name.startswith((*TIMES, "images"))}
    assert {"mask_ap", "boundary_ap", "boundary_iou"} <= same
    assert expected["boundary_iou"] > 0
    assert {name: first["metrics"][name] for name in same} == {n: expected[n] for n in same}
    assert second["metrics"] == {}
    assert first["training"]
    assert second["training"]


if __name__ == "__main__":
    main(*sys.argv[1:])
