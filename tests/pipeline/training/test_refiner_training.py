"""Refiners train on instance shards, resume, are evaluated and registered like other models."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.errors import RecipeError
from pipeline.recipe import EvaluationConfig, from_json, reads_masks, to_json
from pipeline.training import checkpoint, launch
from pipeline.training.evaluate_checkpoint import evaluate_on_workers
from pipeline.training.preflight import prepare_run
from pipeline.training.step import WorkerContext
from pipeline.training.validation_loss import compute_validation_losses
from tests.pipeline.refine.drawn_photos import TINY, make_tiny_refiner
from tests.pipeline.training import tiny_run, tiny_semantic_run
from tests.pipeline.training.tiny_refine_run import refine_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("refiner")


@pytest.fixture(scope="module")
def shards(folder) -> Path:
    # Some images have no objects.
    return tiny_run.write_shards(folder, train_images=24)


@pytest.mark.slow
def test_a_run_writes_all_its_outputs_and_resumes(shards, folder, caplog):
    recipe = refine_recipe(shards, folder / "runs", name="whole", num_workers=0)
    first = replace(recipe, name="first", optim=replace(recipe.optim, steps=5, ema_decay=0.9))
    averaged = load_file(launch.run(first)["weights"])
    with caplog.at_level(logging.INFO, logger="pipeline"):
        result = launch.run(recipe)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert (result["name"], result["steps"], result["images"]) == ("whole", 8, 4)
    for name in ("mask_iou", "boundary_iou", "boundary_iou_narrow"):
        assert 0 < result[name] < 1
        assert 0 < result[f"given_{name}"] < 1
    assert "AP" not in result
    rows = json.loads(Path(result["refined"]).read_text())
    report = Path(result["report"]).read_text()
    assert f"{len(rows)} masks in 4 images, damaged and then refined" in report
    assert report.count("<figcaption>") == len(rows)
    assert {"image_id", "annotation_id", "category_id", "score", "segmentation"} == set(rows[0])
    assert result["model"] == "models:/tiny-refiner/2"
    assert "band 0.5%" in caplog.text
    assert from_json((folder / "runs" / "whole" / "recipe.json").read_text()).model == TINY
    again = launch.run(recipe)
    assert again["boundary_iou"] == result["boundary_iou"]
    assert again["model"] == result["model"]
    # The average of the weights is the model, where the recipe averages.
    final = checkpoint.find_latest(str(folder / "runs" / "first"))
    for key, value in (checkpoint.load(final) if final else {})["average"].items():
        assert torch.equal(averaged[key], value)
    # It starts from a registered refiner.
    start = replace(
        recipe,
        name="tuned",
        model=replace(TINY, weights="models:/tiny-refiner/2"),
        optim=replace(recipe.optim, steps=1, lr_per_image=1e-9, warmup_steps=0),
    )
    assert launch.run(start)["steps"] == 1
    latest = [checkpoint.find_latest(str(folder / "runs" / n)) for n in ("whole", "tuned")]
    before, after = (checkpoint.load(each)["model"] for each in latest if each)
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, atol=1e-4, rtol=1e-3)


def test_instance_shards_of_any_categories_train_it(shards, folder):
    recipe = refine_recipe(shards, folder / "runs", name="checked", num_workers=0)
    assert reads_masks(recipe.model)
    assert from_json(to_json(recipe)) == recipe
    assert prepare_run(recipe).train_images == 24


def test_other_shards_and_fields_without_an_effect_are_refused(folder, tmp_path):
    maps = tiny_semantic_run.write_shards(tmp_path)
    recipe = refine_recipe(maps, folder / "runs", name="wrong", num_workers=0)
    recipe = replace(
        recipe,
        evaluation=EvaluationConfig(boxes="truth", window_px=64),
        data=replace(recipe.data, test_short_edge_px=64),
    )
    with pytest.raises(RecipeError) as raised:
        prepare_run(recipe)
    for part in (
        "holds semantic shards; this recipe trains refine models",
        "evaluation.boxes is only for instance models, and this is a refine model",
        "evaluation.window_px is only for semantic models",
        "data.test_short_edge_px is only for instance models",
    ):
        assert part in str(raised.value), part
    assert "data.short_edge_px" not in str(raised.value)


def test_it_is_evaluated_while_it_trains(shards, folder):
    recipe = refine_recipe(shards, folder / "runs", name="during", num_workers=0)
    model = make_tiny_refiner().train()
    found = evaluate_on_workers(model, recipe, worker=WorkerContext())
    assert 0 < found["boundary_iou"] < 1
    losses = compute_validation_losses(model, recipe, worker=WorkerContext())
    assert losses["val_loss"] > 0
    assert losses == compute_validation_losses(model, recipe, worker=WorkerContext())
    assert model.training
