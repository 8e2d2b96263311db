"""Whole runs in this process."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from bsm.build import build_model
from pipeline.errors import RecipeError
from pipeline.recipe import from_json
from pipeline.training import evaluate_checkpoint, launch
from tests.pipeline.training.tiny_run import tiny_recipe, write_shards


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("launch")


@pytest.fixture(scope="module")
def shards(folder) -> Path:
    return write_shards(folder, train_images=12)


@pytest.fixture(scope="module")
def finished_run(shards, folder):
    recipe = tiny_recipe(shards, folder / "runs", name="finished", num_workers=0)
    return recipe, launch.run(recipe)


@pytest.mark.slow
def test_a_run_writes_all_its_outputs(finished_run):
    recipe, result = finished_run
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert (result["name"], result["steps"], result["images"]) == ("finished", 13, 4)
    for name in ("AP", "AP50", "mask_ap", "boundary_ap", "box_ap", "images_per_s"):
        assert result[name] >= 0
    assert set(result["seconds_by_phase"]) == {"check", "train", "evaluate", "register"}
    for name in ("checkpoint", "weights", "detections", "samples"):
        assert Path(result[name]).exists(), name
    assert len(Path(result["samples"]).read_text().splitlines()) == 1 + 13 * 4
    assert from_json(Path(recipe.storage, "finished", "recipe.json").read_text()) == recipe


@pytest.mark.slow
def test_a_finished_run_is_only_evaluated_again(finished_run, caplog):
    recipe, result = finished_run
    with caplog.at_level(logging.INFO, logger="pipeline"):
        again = launch.run(recipe)
    assert "run finished is finished (step 13 of 13): nothing to train" in caplog.text
    assert "step 1/13" not in caplog.text
    for name in ("mask_ap", "samples_sha256", "run_id", "steps"):
        assert again[name] == result[name]


@pytest.mark.slow
def test_evaluating_checkpoints_does_not_change_training(finished_run, caplog):
    recipe, result = finished_run
    evaluating = replace(
        recipe, name="evaluating", evaluation=replace(recipe.evaluation, every_checkpoint=True)
    )
    with caplog.at_level(logging.INFO, logger="pipeline"):
        evaluated = launch.run(evaluating)
    for name in ("mask_ap", "boundary_ap", "box_ap", "samples_sha256"):
        assert evaluated[name] == result[name]
    trained = [load_file(run["weights"]) for run in (result, evaluated)]
    for name, value in trained[0].items():
        assert torch.equal(value, trained[1][name]), name
    assert caplog.text.count("step 5  mask_ap ") == 1
    saved = evaluate_checkpoint.load_metrics(f"{recipe.storage}/evaluating")
    assert list(saved) == [5, 10]
    assert {"mask_ap", "boundary_ap"} <= saved[5].keys()
    store = MlflowClient(evaluated["tracking"].rpartition(" ")[2])
    history = store.get_metric_history(evaluated["run_id"], "boundary_ap")
    assert [point.step for point in history] == [5, 10, 13]
    without = store.get_metric_history(result["run_id"], "boundary_ap")
    assert {point.step for point in without} == {13}


@pytest.mark.slow
def test_another_recipe_under_the_same_name_is_refused_and_writes_nothing(finished_run):
    recipe, _ = finished_run
    other = replace(recipe, optim=replace(recipe.optim, lr_per_image=0.002))
    with pytest.raises(RecipeError, match=r"optim\.lr_per_image: 0\.001 -> 0\.002"):
        launch.run(other)
    assert from_json(Path(recipe.storage, "finished", "recipe.json").read_text()) == recipe


@pytest.mark.slow
def test_a_run_starts_exactly_from_the_weights_of_a_model(shards, folder, monkeypatch):
    """The path is relative to the working directory; a resume no longer needs the file."""
    monkeypatch.chdir(folder)
    recipe = tiny_recipe(shards, folder / "runs", name="from-a-model", num_workers=0)
    torch.manual_seed(5)
    start = build_model(recipe.model)
    torch.save({"model": start.state_dict()}, "start.pth")
    # Steps too small to change a weight that is not 0.
    recipe = replace(
        recipe,
        model=replace(recipe.model, weights="start.pth", weights_leave_out=("box_head.scores",)),
        optim=replace(recipe.optim, lr_per_image=1e-12, steps=2, warmup_steps=1),
    )
    ended = load_file(launch.run(recipe)["weights"])
    moved = {k for k, v in start.state_dict().items() if not torch.allclose(ended[k], v, atol=1e-7)}
    assert moved == {"box_head.scores.weight"}  # the bias starts at 0 either way
    Path("start.pth").unlink()
    launch.run(recipe)


def test_the_resume_command_is_the_command(monkeypatch):
    monkeypatch.setattr("sys.argv", ["jobs/coco_r50.py", "--name", "two words"])
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert launch.resume_command() == "python jobs/coco_r50.py --name 'two words'"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert launch.resume_command().startswith("ray job submit --working-dir . -- python jobs/")
