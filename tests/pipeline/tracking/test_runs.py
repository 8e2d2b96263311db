"""The embedded store, resume, and messages about unreachable stores."""

import json
import os
import shutil
import socket
import time
from dataclasses import replace

import pytest
from mlflow import MlflowClient

from pipeline.errors import RecipeError, StorageError
from pipeline.recipe import Recipe, TrackingConfig, from_json
from pipeline.tracking.runs import (
    MetricLog,
    finish,
    log_artifacts,
    log_metrics,
    open_run,
    resolve_tracking_uri,
)
from pipeline.tracking.stores import create_client


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """One embedded store for the module, as creating its tables takes seconds."""
    return Recipe(name="first", storage=str(tmp_path_factory.mktemp("runs")))


def unreachable_uri():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://user:sesame@127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def short_timeouts(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")


def test_a_run_records_recipe_versions_and_data(recipe, tmp_path):
    handle = open_run(recipe, data_fingerprint="d4t4")
    log_metrics(handle, {"mask_ap": 0.31}, step=10)
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"png")
    assert log_artifacts(handle, picture, folder="pictures")
    assert finish(handle)

    store = MlflowClient(handle.tracking_uri)
    run = store.get_run(handle.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["optim.steps"] == "90000"
    assert run.data.params["model.mask_head.squeeze.variant"] == "released"
    assert run.data.metrics == {"mask_ap": 0.31}
    assert run.data.tags["data_fingerprint"] == "d4t4"
    assert run.data.tags["version.torch"]
    text = store.download_artifacts(handle.run_id, "recipe.json", str(tmp_path))
    with open(text) as stream:  # noqa: PTH123
        assert from_json(stream.read()) == recipe
    files = {f.path for f in store.list_artifacts(handle.run_id)}
    assert files == {"recipe.json", "requirements.txt", "pictures"}
    assert handle.run_id in run.info.artifact_uri
    assert run.info.artifact_uri.startswith(f"file://{recipe.storage}/mlartifacts/")


def test_the_same_name_resumes_the_same_run(recipe):
    recipe = replace(recipe, name="twice")
    first = open_run(recipe)
    log = MetricLog(first.tracking_uri, first.run_id, first.spool_uri)
    log.log(1, {"loss": 2.0})
    assert log.close() == 0
    assert finish(first, "FAILED")

    again = replace(recipe, scale=replace(recipe.scale, num_workers=4))
    second = open_run(again)
    assert second == first
    store = MlflowClient(first.tracking_uri)
    run = store.get_run(first.run_id)
    assert run.info.status == "RUNNING"
    assert run.data.tags["resumed_with"] == "scale.num_workers: 2 -> 4"
    assert run.data.metrics == {"loss": 2.0}


def test_a_run_that_ends_closes_its_open_children(recipe):
    """Like the trials of a sweep whose processes were stopped with it."""
    sweep = open_run(replace(recipe, name="sweep"))
    parent = {"parent_run_id": sweep.run_id}
    ended, still_open = (open_run(replace(recipe, name=name), **parent) for name in ("s-1", "s-2"))
    unrelated = open_run(replace(recipe, name="unrelated"))
    assert finish(ended, "FAILED")
    assert finish(sweep, "KILLED")
    store = MlflowClient(sweep.tracking_uri)
    states = [
        store.get_run(run.run_id).info.status for run in (sweep, ended, still_open, unrelated)
    ]
    assert states == ["KILLED", "FAILED", "KILLED", "RUNNING"]


def test_a_stopped_trial_stays_killed_when_it_sees_its_workers_die(recipe):
    trial = open_run(replace(recipe, name="stopped"))
    store = MlflowClient(trial.tracking_uri)
    assert finish(trial, "KILLED")
    assert finish(trial, "FAILED")
    assert store.get_run(trial.run_id).info.status == "KILLED"
    assert finish(open_run(replace(recipe, name="stopped")), "FAILED")
    assert store.get_run(trial.run_id).info.status == "FAILED"


def test_a_deleted_folder_starts_a_fresh_run(recipe):
    recipe = replace(recipe, name="again")
    first = open_run(recipe)
    shutil.rmtree(f"{recipe.storage}/again")
    second = open_run(recipe)
    assert second.run_id != first.run_id
    assert second.experiment_id == first.experiment_id


def test_an_unreachable_store_is_an_error_at_the_first_start(tmp_path, short_timeouts, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", unreachable_uri())
    recipe = Recipe(name="new", storage=str(tmp_path))
    with pytest.raises(StorageError) as raised:
        open_run(recipe)
    text = str(raised.value)
    assert "does not answer" in text
    assert "--tracking.uri" in text
    assert "sesame" not in text
    assert raised.value.__cause__ is None


def test_an_unreachable_store_does_not_stop_a_resumed_run(
    tmp_path, short_timeouts, caplog, monkeypatch
):
    uri = unreachable_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    recipe = Recipe(name="old", storage=str(tmp_path))
    redacted_uri = uri.replace("user:sesame", "***")
    ids = {"experiment_id": "1", "run_id": "abc"}
    (tmp_path / "old").mkdir()
    record = {"key": "k", "runs": {redacted_uri: ids}}
    (tmp_path / "old" / "tracking.json").write_text(json.dumps(record))

    handle = open_run(recipe)
    assert handle.run_id == "abc"
    assert handle.url == f"{redacted_uri}/#/experiments/1/runs/abc"
    log_metrics(handle, {"mask_ap": 0.3}, step=5)
    assert not log_artifacts(handle, __file__)
    assert not finish(handle)
    spooled = list((tmp_path / "old" / "spool").glob("abc-*.jsonl"))
    assert [json.loads(f.read_text())[1:] for f in spooled] == [[5, {"mask_ap": 0.3}]]
    assert "sesame" not in caplog.text + repr(handle) + spooled[0].name
    assert "sesame" not in (tmp_path / "old" / "tracking.json").read_text()


@pytest.mark.parametrize(
    "uri",
    [
        "http://me:sesame@host:5000",
        "postgresql://me@db.example/mlflow?sslpassword=sesame",
        "https://host?access_token=sesame",
    ],
)
def test_a_recipe_must_not_contain_a_password(uri):
    with pytest.raises(RecipeError, match="MLFLOW_TRACKING_PASSWORD") as raised:
        TrackingConfig(uri=uri)
    assert "sesame" not in str(raised.value)
    TrackingConfig(uri="postgresql://me@db.example/mlflow")


def test_the_environment_may_set_the_store_and_its_password(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:sesame@host:5000")
    assert resolve_tracking_uri("", storage_uri="runs") == "http://me:sesame@host:5000"
    assert resolve_tracking_uri("http://other:5000", storage_uri="runs") == "http://other:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/my.db")
    recipe = Recipe(name="env", storage=str(tmp_path / "runs"))
    handle = open_run(recipe)
    assert (tmp_path / "my.db").exists()
    assert not (tmp_path / "runs" / "mlflow.db").exists()
    assert handle.tracking_uri == f"sqlite:///{tmp_path}/my.db"


def test_uris_become_absolute_and_unknown_schemes_are_refused(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    assert resolve_tracking_uri("", storage_uri="runs") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert (
        resolve_tracking_uri("sqlite:///my.db", storage_uri="runs") == f"sqlite:///{tmp_path}/my.db"
    )
    assert resolve_tracking_uri("http://host:5000", storage_uri="runs") == "http://host:5000"
    assert (
        resolve_tracking_uri("", storage_uri="s3://bucket/runs")
        == f"sqlite:///{tmp_path}/runs/mlflow.db"
    )
    assert "set --tracking.uri" in caplog.text
    with pytest.raises(StorageError, match="must start with one of http"):
        resolve_tracking_uri("host:5000", storage_uri="runs")


@pytest.mark.parametrize("name", ["feature%2Fx", "what?"])
def test_a_path_that_sqlalchemy_decodes_is_refused_with_a_way_on(tmp_path, monkeypatch, name):
    folder = tmp_path / name / "runs"
    for given in ({"uri": ""}, {"uri": f"sqlite:///{folder}/mlflow.db"}):
        with pytest.raises(StorageError) as raised:
            resolve_tracking_uri(**given, storage_uri=str(folder))
        assert str(raised.value).startswith(f"{folder}/mlflow.db: MLflow cannot open")
        assert "--tracking.uri sqlite:////OTHER/FOLDER/mlflow.db" in str(raised.value)
    with pytest.raises(StorageError, match="percent-encoded"):
        open_run(Recipe(name="first", storage=str(folder)))
    assert not (tmp_path / "feature").exists()
    plain = f"sqlite:///{tmp_path}/mlflow.db"
    assert resolve_tracking_uri(plain, storage_uri=str(folder)) == plain


@pytest.mark.parametrize("name", ["100% + #1 'x'"])
def test_other_characters_in_a_path_are_taken_as_they_are(tmp_path, name):
    handle = open_run(Recipe(name="first", storage=str(tmp_path / name)))
    assert log_artifacts(handle, __file__)
    assert finish(handle)
    assert (tmp_path / name / "mlflow.db").stat().st_size
    assert list((tmp_path / name / "mlartifacts").rglob("test_runs.py"))
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.write_bytes(b"no database " * 100), "file is not a database"),
        (lambda path: path.mkdir(parents=True), "unable to open database file"),
    ],
)
def test_a_database_that_cannot_be_opened_is_an_error_in_seconds(tmp_path, make, reason):
    path = tmp_path / "mlflow.db"
    make(path)
    started = time.monotonic()
    with pytest.raises(StorageError, match=f"{path} cannot be opened: {reason}; .*permissions"):
        create_client(f"sqlite:///{path}")
    assert time.monotonic() - started < 20


def test_a_moved_store_is_not_written_at_its_old_place(tmp_path):
    handle = open_run(Recipe(name="first", storage=str(tmp_path / "old")))
    log_artifacts(handle, __file__)
    finish(handle)
    (tmp_path / "old").rename(tmp_path / "new")
    moved = Recipe(name="second", storage=str(tmp_path / "new"))
    with pytest.raises(StorageError) as raised:
        open_run(moved)
    link = f"mkdir -p {tmp_path} && ln -s {tmp_path}/new {tmp_path}/old"
    assert str(raised.value).endswith(link)
    assert not (tmp_path / "old").exists()
    os.system(link)  # noqa: S605  the command of the message
    assert open_run(moved).run_id
