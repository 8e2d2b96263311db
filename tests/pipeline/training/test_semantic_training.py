"""Semantic models train, resume, are evaluated and registered like instance models."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bsm.configs.instance import MaskRCNNConfig
from pipeline.data.stream import local_batches
from pipeline.errors import RecipeError, TrainingError
from pipeline.recipe import ColorConfig
from pipeline.training import checkpoint, launch
from pipeline.training.loop import Hooks, TrainJob, train
from pipeline.training.preflight import prepare_run
from pipeline.training.sample_log import merge_sample_lists
from pipeline.training.step import WorkerContext
from tests.pipeline.training.tiny_semantic_run import semantic_recipe, write_shards


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("semantic")


@pytest.fixture(scope="module")
def shards(folder) -> Path:
    return write_shards(folder)


@pytest.mark.slow
def test_a_run_writes_all_its_outputs(shards, folder, caplog):
    recipe = semantic_recipe(shards, folder / "runs", name="whole", num_workers=0)
    tracking = replace(recipe.tracking, model_name="maps")
    recipe = replace(
        recipe,
        tracking=tracking,
        data=replace(recipe.data, color=ColorConfig(brightness=0.4, hue=0.1)),
    )
    with caplog.at_level(logging.INFO, logger="pipeline"):
        result = launch.run(recipe)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert (result["name"], result["steps"], result["images"]) == ("whole", 8, 3)
    for name in ("miou", "boundary_f_1px", "boundary_f_2px", "images_per_s"):
        assert result[name] >= 0, name
    assert "AP" not in result
    assert {p.name for p in Path(result["label_maps"]).iterdir()} == {"p0.png", "p1.png", "p2.png"}
    assert len(Path(result["samples"]).read_text().splitlines()) == 1 + 8 * 4
    assert result["is_champion"]
    for line in ("(seg ", "F-score; ", "(absent=one)", "version 1 is the first", "label maps in"):
        assert any(line in message for message in caplog.messages), line


@pytest.mark.parametrize("crash_after", [3, 5])
def test_a_resumed_run_ends_bit_for_bit_like_an_unbroken_one(shards, folder, crash_after):
    recipe = semantic_recipe(shards, folder / "runs", name=f"s{crash_after}", num_workers=0)
    straight, broken = prepare_run(recipe), prepare_run(replace(recipe, name=f"b{crash_after}"))
    train_until(straight, 8)
    with pytest.raises(TrainingError, match=f"ended before step {crash_after}"):
        train_until(broken, crash_after)
    train_until(broken, 8)
    samples = [
        merge_sample_lists(each.run_uri, steps=8, global_batch=4)[1] for each in (straight, broken)
    ]
    assert samples[0] == samples[1]
    one, two = (
        checkpoint.load(checkpoint.find_latest(each.run_uri))["model"]
        for each in (straight, broken)
    )
    # The running statistics of batch norm are included.
    assert any("running_mean" in name for name in one)
    for name, weight in one.items():
        assert torch.equal(weight, two[name]), name


def train_until(prepared, stop):
    recipe = prepared.recipe
    job = TrainJob(
        recipe=recipe, identity=prepared.identity, run_uri=prepared.run_uri, resume_command="again"
    )
    return train(
        job,
        worker=WorkerContext(),
        batches=lambda first: local_batches(
            prepared.train_uri,
            recipe.data,
            seed=recipe.seed,
            global_batch=4,
            images_per_microbatch=2,
            first_step=first,
            stop_step=stop,
        ),
        hooks=Hooks(),
        resume_from=checkpoint.find_latest(prepared.run_uri),
    )


def test_shards_of_another_task_are_refused_with_the_command_to_use(shards, folder):
    recipe = semantic_recipe(shards, folder / "none", name="other", num_workers=0)
    instance = replace(
        recipe,
        model=MaskRCNNConfig(num_classes=3),
        data=replace(recipe.data, crop_px=832),
        evaluation=replace(recipe.evaluation, radii_px=(3, 5, 9, 12)),
    )
    with pytest.raises(RecipeError) as error:
        prepare_run(instance)
    assert "holds semantic shards; this recipe trains instance models" in str(error.value)
    assert f"python jobs/cityscapes_semantic_r50.py --data.root {shards}" in str(error.value)
    assert "num_classes" not in str(error.value)


def test_all_problems_of_a_semantic_recipe_are_reported_at_once(shards, folder):
    recipe = semantic_recipe(shards, folder / "none", name="wrong", num_workers=1)
    head = replace(recipe.model.head, targets=replace(recipe.model.head.targets, kernel_size=101))
    wrong = replace(
        recipe,
        model=replace(
            recipe.model,
            num_classes=19,
            head=head,
            backbone=replace(recipe.model.backbone, norm="sync"),
        ),
        data=replace(recipe.data, short_edge_px=(64,), test_size_hw=(32, 32)),
        evaluation=replace(recipe.evaluation, boxes="truth", submission=True, window_px=64),
    )
    with pytest.raises(RecipeError) as error:
        prepare_run(wrong)
    for part in (
        "Type: --model.num-classes 3",
        "kernel_size 101 reaches 50 px, but shards store distances up to 63 px around a border, "
        "which become 47.25 px",
        "norm is sync",
        "data.short_edge_px is only for instance and refine models, and this is a semantic model",
        "evaluation.boxes is only for instance models",
        "evaluation.submission is only for instance models",
        "evaluation.window_px",
    ):
        assert part in str(error.value), part
