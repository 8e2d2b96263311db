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
from pipeline.errors import RecipeError, RegistryError, StorageError, TrainingError
from pipeline.evaluation.checkpoint_metrics import load_metrics
from pipeline.recipe import from_json
from pipeline.rows import Paper, Row
from pipeline.training import checkpoint, launch, run_header, run_lock
from pipeline.training.finished_run import register_run
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
    phases = {"check", "train", "evaluate", "register", "report"}
    assert set(result["seconds_by_phase"]) == phases
    for name in ("checkpoint", "weights", "detections", "samples", "report"):
        assert Path(result[name]).exists(), name
    assert len(Path(result["samples"]).read_text().splitlines()) == 1 + 13 * 4
    assert from_json(Path(recipe.storage, "finished", "recipe.json").read_text()) == recipe


@pytest.mark.slow
def test_the_report_of_a_run_is_also_in_mlflow(finished_run):
    _, result = finished_run
    store = MlflowClient(result["tracking"].rpartition(" ")[2])
    artifacts = [each.path for each in store.list_artifacts(result["run_id"])]
    assert "report.html" in artifacts
    text = Path(result["report"]).read_text()
    assert "There are no curves" not in text
    assert "total loss by step" in text
    # The row that this run was not started from.
    assert "There is no number of the paper: the run was not started from a row" in text


@pytest.mark.slow
def test_a_run_does_not_fail_for_its_report(finished_run, caplog, monkeypatch):
    recipe, _ = finished_run

    def fail(*_, **__):
        raise RuntimeError("no space left, s3://key:secret@host/x")

    monkeypatch.setattr("pipeline.run_report.report.write_report", fail)
    row = Row(recipe, "tiny", (Paper(table="2", split="val2017", mask_ap=36.9),))
    result = launch.run(recipe, row=row)
    assert result["report"] == ""
    lines = [line for line in caplog.messages if line.startswith("report: ")]
    assert lines == [
        "report: not written: no space left, s3://***@host/x. To try again: bsm report "
        f"{recipe.storage}/finished"
    ]
    monkeypatch.undo()
    # The row was saved before, and a call without one keeps it.
    launch.run(recipe)
    text = Path(recipe.storage, "finished", "report.html").read_text()
    assert "paper (Table 2, val2017)" in text
    assert "36.9" in text


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
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("metrics.json", r"metrics\.json was changed after it was written"),
        ("trained_on.json", r"trained_on\.json was changed after it was written"),
        ("model.safetensors", r"finished/model\.safetensors is not registered: .*were changed"),
        ("checkpoints/step-00000013/checkpoint.pt", "is not finished: it is at step 10 of 13"),
    ],
)
def test_a_run_with_a_changed_file_is_not_registered(finished_run, name, reason, caplog):
    recipe, _ = finished_run
    run_uri = f"{recipe.storage}/finished"
    file = Path(run_uri, name)
    before = file.read_bytes()
    at = len(before) // 2
    file.write_bytes(before[:at] + bytes([before[at] ^ 1]) + before[at + 1 :])
    try:
        with pytest.raises((RegistryError, StorageError), match=reason):
            register_run(run_uri, name="changed")
    finally:
        file.write_bytes(before)
    assert ("passed over" in caplog.text) == name.startswith("checkpoints")
    assert not MlflowClient(f"sqlite:///{recipe.storage}/mlflow.db").search_registered_models()


@pytest.mark.slow
def test_evaluating_checkpoints_does_not_change_training(finished_run, caplog):
    recipe, result = finished_run
    evaluating = replace(
        recipe,
        name="evaluating",
        checkpoint=replace(recipe.checkpoint, best_metric="val_loss", keep=1),
    )
    with caplog.at_level(logging.INFO, logger="pipeline"):
        evaluated = launch.run(evaluating)
    assert evaluated["samples_sha256"] == result["samples_sha256"]
    run_uri = f"{recipe.storage}/evaluating"
    last = checkpoint.load(checkpoint.find_latest(run_uri))
    for name, value in load_file(result["weights"]).items():
        assert torch.equal(value, last["model"][name]), name
    assert caplog.text.count("step 5  mask_ap ") == 1
    # The best of them is the run's model.
    saved = load_metrics(run_uri)
    assert list(saved) == [5, 10, 13]
    assert {"mask_ap", "boundary_ap", "val_loss", "val_loss_mask"} <= saved[5].keys()
    best = min(saved, key=lambda step: saved[step]["val_loss"])
    assert evaluated["evaluated_step"] == best
    assert evaluated["checkpoint"].endswith(f"step-{best:08d}")
    assert {ref.step for ref in checkpoint.find_all(run_uri)} == {best, 13}
    for name in ("mask_ap", "boundary_ap", "box_ap"):
        assert evaluated[name] == saved[best][name]
    weights = checkpoint.load(checkpoint.get_ref(run_uri, step=best))["model"]
    for name, value in load_file(evaluated["weights"]).items():
        assert torch.equal(value, weights[name]), name
    choice = f"The model is the checkpoint of step {best}: val_loss "
    report = Path(evaluated["report"]).read_text()
    assert choice in caplog.text
    assert choice in report
    assert ">validation</text>" in report
    store = MlflowClient(evaluated["tracking"].rpartition(" ")[2])
    history = store.get_metric_history(evaluated["run_id"], "boundary_ap")
    assert sorted({point.step for point in history}) == [5, 10, 13]
    losses = store.get_metric_history(evaluated["run_id"], "val_loss")
    assert [point.step for point in losses] == [5, 10, 13]
    without = store.get_metric_history(result["run_id"], "boundary_ap")
    assert {point.step for point in without} == {13}


@pytest.mark.slow
def test_a_run_that_loses_its_lock_stops_and_writes_no_more(shards, folder, monkeypatch):
    recipe = tiny_recipe(shards, folder / "runs", name="lost", num_workers=0)
    recipe = replace(recipe, optim=replace(recipe.optim, steps=2000))
    run = Path(recipe.storage, "lost")
    monkeypatch.setattr(run_lock, "HEARTBEAT_S", 0.1)
    write, kept = checkpoint.save, []

    def lose_lock(*args, **kwargs):
        saved = write(*args, **kwargs)
        if not kept:
            # A heartbeat beside this has a temporary file, and may write the file once more.
            lock = next((run / "lock").glob("*.json"))
            mine = json.loads(lock.read_text())
            other = {**mine, "key": "other", "since_s": mine["since_s"] + 60}
            lock.with_name("other.json").write_text(json.dumps(other))
            lock.unlink(missing_ok=True)
            kept.append(saved)
        return saved

    monkeypatch.setattr(checkpoint, "save", lose_lock)
    with pytest.raises(TrainingError, match=r"was taken over by .*\. It writes nothing more"):
        launch.run(recipe)
    assert not (run / "model.safetensors").exists()
    assert not (run / "metrics.json").exists()
    assert [path.name for path in (run / "lock").iterdir()] == ["other.json"]
    store = MlflowClient(f"sqlite:///{recipe.storage}/mlflow.db")
    statuses = {each.info.run_name: each.info.status for each in store.search_runs(["1"])}
    assert statuses["lost"] == "FAILED"


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
    assert run_header.resume_command() == "python jobs/coco_r50.py --name 'two words'"
    monkeypatch.setattr("sys.argv", ["/usr/bin/bsm", "train", "coco_r50", "--name", "two words"])
    assert run_header.resume_command() == "bsm train coco_r50 --name 'two words'"
    monkeypatch.setattr("sys.argv", ["jobs/coco_r50.py"])
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert run_header.resume_command().startswith("ray job submit --working-dir . -- python jobs/")
