"""A model that was registered before modules and recipe fields were renamed still works."""

import json
import os
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from PIL import Image

from jobs.models import EvaluationOptions, evaluate
from pipeline import serving
from pipeline.registry.predict import load_registered_model

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
SAVED = "models:/saved-model/1"
PACKAGED_MODEL = Path(serving.__path__[0]) / "packaged_model.py"

CLEAN_PROCESS = """
import json, sys
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
rows = model.predict(["photo.png"], params={"score_threshold": 0.0})
ours = [m.__file__ for n, m in sys.modules.items() if n.partition(".")[0] in ("bsm", "pipeline")]
print(json.dumps({"rows": rows.to_dict("records"), "files": ours}))
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """An embedded store in which the old model folder is version 1 of saved-model."""
    folder = tmp_path_factory.mktemp("saved")
    with zipfile.ZipFile(FIXTURES / "model_before_renames.zip") as archive:
        archive.extractall(folder / "model")
    uri = f"sqlite:///{folder}/mlflow.db"
    store = MlflowClient(uri, uri)
    experiment = store.create_experiment("saved", (folder / "artifacts").as_uri())
    run = store.create_run(experiment).info
    store.log_artifacts(run.run_id, str(folder / "model"), "models/saved")
    store.create_registered_model("saved-model")
    store.create_model_version("saved-model", f"{run.artifact_uri}/models/saved", run.run_id)
    return uri


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """The val shards that the model was evaluated on before the renames."""
    folder = tmp_path_factory.mktemp("shards")
    with zipfile.ZipFile(FIXTURES / "run_before_renames.zip") as archive:
        archive.extractall(folder, [n for n in archive.namelist() if n.startswith("shards/val/")])
    return str(folder / "shards" / "val")


@pytest.fixture
def model_folder(registry):
    return Path(registry.removeprefix("sqlite:///")).parent / "model"


@pytest.fixture
def photo(tmp_path):
    array = np.random.default_rng(0).integers(0, 255, (72, 96, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def test_the_new_code_predicts_what_the_stored_code_predicts(
    registry, model_folder, photo, tmp_path
):
    """Loaded with its own code in a clean process, and with this package in this process."""
    env = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", CLEAN_PROCESS, str(model_folder)],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    stored = json.loads(done.stdout.splitlines()[-1])
    assert len(stored["rows"]) > 2
    assert all(file.startswith(str(model_folder)) for file in stored["files"])

    registered = load_registered_model(SAVED, tracking=registry)
    assert registered.uri == SAVED
    rows = registered.model.predict([photo], params={"score_threshold": 0.0}).to_dict("records")
    for name in ("category_name", "category_index", "rle"):
        assert [row[name] for row in rows] == [row[name] for row in stored["rows"]]
    for name in ("score", "box_xyxy"):
        np.testing.assert_allclose(
            [row[name] for row in rows], [row[name] for row in stored["rows"]], rtol=1e-4, atol=1e-4
        )


def test_an_old_model_is_evaluated_with_the_new_code(registry, shards, model_folder, caplog):
    caplog.set_level("INFO")
    (recorded,) = (json.loads(path.read_text()) for path in model_folder.glob("evaluations/*"))
    options = EvaluationOptions(max_images=2)
    known = evaluate(model=SAVED, data=shards, how=options, tracking_uri=registry)
    assert known == {"model": SAVED, **recorded}
    assert "evaluating" not in caplog.text

    options = EvaluationOptions(max_images=1)
    result = evaluate(model=SAVED, data=shards, how=options, tracking_uri=registry)
    assert f"evaluating {SAVED}" in caplog.text
    assert result["evaluated_on"] == recorded["evaluated_on"].replace("2 images", "1 images")
    assert result["metrics"].keys() == recorded["metrics"].keys()


def test_old_code_is_refused_beside_this_package_with_the_way_out(model_folder, monkeypatch):
    # MLflow adds the stored code to sys.path and leaves it there.
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(MlflowException, match="load_registered_model"):
        mlflow.pyfunc.load_model(str(model_folder))


def test_new_code_is_refused_beside_another_version_with_the_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "pipeline.serving.predictor", None)
    with pytest.raises(ImportError, match="load_registered_model"):
        runpy.run_path(str(PACKAGED_MODEL))
