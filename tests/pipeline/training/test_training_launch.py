"""Whole runs in this process, and everything that is refused before one starts."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from bsm.build import build_model
from bsm.configs.semantic import DeepLabConfig
from pipeline.errors import DatasetError, RecipeError
from pipeline.recipe import from_json
from pipeline.training import evaluate_checkpoint, launch
from pipeline.training.preflight import check
from tests.pipeline.training.tiny_run import tiny_recipe, write_shards


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("launch")


@pytest.fixture(scope="module")
def shards(folder) -> Path:
    return write_shards(folder, train_images=12)


@pytest.fixture(scope="module")
def finished(shards, folder):
    recipe = tiny_recipe(shards, folder / "runs", name="finished", num_workers=0)
    return recipe, launch.run(recipe)


@pytest.mark.slow
def test_a_run_ends_with_all_that_it_promises(finished):
    recipe, result = finished
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
def test_a_finished_run_is_evaluated_again_and_trains_nothing(finished, caplog):
    recipe, result = finished
    with caplog.at_level(logging.INFO, logger="pipeline"):
        again = launch.run(recipe)
    assert "run finished is finished (step 13 of 13): nothing to train" in caplog.text
    assert "step 1/13" not in caplog.text
    for name in ("mask_ap", "samples_sha256", "run_id", "steps"):
        assert again[name] == result[name]


@pytest.mark.slow
def test_measuring_at_checkpoints_changes_nothing_but_that_it_is_known(finished, caplog):
    recipe, result = finished
    measuring = replace(
        recipe, name="measuring", evaluation=replace(recipe.evaluation, every_checkpoint=True)
    )
    with caplog.at_level(logging.INFO, logger="pipeline"):
        measured = launch.run(measuring)
    for name in ("mask_ap", "boundary_ap", "box_ap", "samples_sha256"):
        assert measured[name] == result[name]
    trained = [load_file(run["weights"]) for run in (result, measured)]
    for name, value in trained[0].items():
        assert torch.equal(value, trained[1][name]), name
    assert caplog.text.count("step 5  mask_ap ") == 1
    kept = evaluate_checkpoint.kept(f"{recipe.storage}/measuring")
    assert list(kept) == [5, 10]
    assert {"mask_ap", "boundary_ap"} <= kept[5].keys()
    store = MlflowClient(measured["tracking"].rpartition(" ")[2])
    history = store.get_metric_history(measured["run_id"], "boundary_ap")
    assert [point.step for point in history] == [5, 10, 13]
    without = store.get_metric_history(result["run_id"], "boundary_ap")
    assert {point.step for point in without} == {13}


@pytest.mark.slow
def test_another_recipe_under_its_name_is_refused_and_leaves_no_trace(finished):
    recipe, _ = finished
    other = replace(recipe, optim=replace(recipe.optim, lr_per_image=0.002))
    with pytest.raises(RecipeError, match=r"optim\.lr_per_image: 0\.001 -> 0\.002"):
        launch.run(other)
    assert from_json(Path(recipe.storage, "finished", "recipe.json").read_text()) == recipe


def test_a_wrong_number_of_classes_names_the_flag(shards, folder):
    recipe = tiny_recipe(shards, folder / "none", name="classes", num_workers=0)
    with pytest.raises(RecipeError, match=r"has 5 categories .*blob.*--model\.num-classes 5"):
        check(replace(recipe, model=replace(recipe.model, num_classes=80)))
    assert not (folder / "none").exists()


def test_all_that_is_wrong_comes_in_one_error(shards, folder):
    recipe = tiny_recipe(shards, folder / "none", name="all", num_workers=2)
    backbone = replace(recipe.model.backbone, norm="sync")
    wrong = replace(
        recipe,
        model=replace(recipe.model, backbone=backbone),
        data=replace(recipe.data, train_split="trian", val_split="vla"),
    )
    with pytest.raises(RecipeError) as error:
        check(wrong)
    for part in ("norm is sync", "shards/trian", "shards/vla", "jobs/ingest.py"):
        assert part in str(error.value)


def test_a_semantic_model_is_refused_on_instance_shards(shards, folder):
    recipe = tiny_recipe(shards, folder / "none", name="semantic", num_workers=0)
    with pytest.raises(RecipeError) as error:
        check(replace(recipe, model=DeepLabConfig(num_classes=5)))
    for part in (
        "train holds instance shards; this recipe trains semantic models",
        "val holds instance shards",
        "data.short_edge_px is read for instance models, and this one is semantic",
    ):
        assert part in str(error.value)


def test_an_unknown_trunk_is_an_error_of_the_recipe(shards, folder):
    recipe = tiny_recipe(shards, folder / "none", name="trunk", num_workers=0)
    backbone = replace(recipe.model.backbone, name="resnet5000")
    with pytest.raises(RecipeError, match="resnet5000"):
        check(replace(recipe, model=replace(recipe.model, backbone=backbone)))


@pytest.mark.slow
def test_a_run_starts_exactly_from_a_whole_model(shards, folder, monkeypatch):
    """Named from the folder where the command is typed; a resume no longer needs the file."""
    monkeypatch.chdir(folder)
    recipe = tiny_recipe(shards, folder / "runs", name="from-a-model", num_workers=0)
    torch.manual_seed(5)
    start = build_model(recipe.model)
    torch.save({"model": start.state_dict()}, "start.pth")
    # Steps too small to move a weight that is not 0.
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


def test_weights_that_do_not_fit_are_an_error_of_the_recipe(shards, folder, monkeypatch):
    monkeypatch.chdir(folder)
    recipe = tiny_recipe(shards, folder / "none", name="weights", num_workers=0)
    other = build_model(replace(recipe.model, num_classes=2))
    torch.save(other.state_dict(), "other.pth")
    with pytest.raises(RecipeError, match=r"other\.pth.*--model\.weights-leave-out box_head"):
        check(replace(recipe, model=replace(recipe.model, weights="other.pth")))
    with pytest.raises(RecipeError, match=rf"{folder}/nowhere\.pth.*no such file"):
        check(replace(recipe, model=replace(recipe.model, weights="nowhere.pth")))


def test_shards_that_changed_after_ingest_are_refused(tmp_path):
    shards = write_shards(tmp_path, train_images=8)
    next((shards / "train").glob("part-*.parquet")).write_bytes(b"PAR1")
    with pytest.raises(DatasetError, match=r"part-00000\.parquet"):
        check(tiny_recipe(shards, tmp_path / "runs", name="cut", num_workers=0))


def test_paths_hold_in_every_folder(shards, folder, monkeypatch):
    monkeypatch.chdir(folder)
    recipe = replace(tiny_recipe(shards, folder, name="paths", num_workers=0), storage="runs_here")
    checked = check(replace(recipe, data=replace(recipe.data, root="shards")))
    assert checked.run_uri == str(folder / "runs_here" / "paths")
    assert checked.recipe.data.root == str(folder / "shards")
    assert checked.identity.recipe.storage == "runs_here"


def test_the_resume_command_is_the_command(monkeypatch):
    monkeypatch.setattr("sys.argv", ["jobs/coco_r50.py", "--name", "two words"])
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert launch.resume_command() == "python jobs/coco_r50.py --name 'two words'"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert launch.resume_command().startswith("ray job submit --working-dir . -- python jobs/")
