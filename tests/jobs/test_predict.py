"""python jobs/predict.py, as a user types it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_api

from pipeline import storage
from pipeline.errors import DatasetError, RegistryError, StorageError
from pipeline.registry.predict import load_registered_model, predict_folder

JOB = Path(__file__).resolve().parents[2] / "jobs" / "predict.py"


@pytest.fixture
def photos(tmp_path):
    """Three photos of different sizes and formats, one in a subfolder, and a text file."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("b.JPG", (60, 90)), ("a.png", (80, 50)), ("sub/a.png", (64, 64))):
        pixels = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("not a photo")
    return folder


@pytest.fixture
def model(registered_model):
    uri = registered_model.handle.tracking_uri
    return load_registered_model(f"models:/{registered_model.name}@champion", tracking=uri)


def run(*arguments, cwd):
    env = {**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    return subprocess.run(
        [sys.executable, str(JOB), *arguments],
        cwd=cwd, env=env, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_the_command_of_the_readme(registered_model, photos, tmp_path):
    # The default registry is the embedded store under runs/.
    (tmp_path / "runs").mkdir()
    database = registered_model.handle.tracking_uri.removeprefix("sqlite:///")
    shutil.copyfile(database, tmp_path / "runs" / "mlflow.db")
    model = f"models:/{registered_model.name}@champion"
    done = run(
        "--model", model, "--images", "photos/", "--out", "out/", "--score", "0", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert lines[-1].startswith("RESULT ")
    result = json.loads(lines[-1].removeprefix("RESULT "))
    assert result["images"] == 3
    assert result["detections"] > 0
    assert result["model"] == f"models:/{registered_model.name}/1"
    assert "predict 3/3 images" in done.stdout
    written = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")}
    assert written == {"detections.json", "a.png", "b.JPG", "sub/a.png"}
    with Image.open(tmp_path / "out" / "b.JPG") as picture:
        assert picture.size == (576, 384)


def test_detections_are_coco_rows_with_file_names(model, photos, tmp_path):
    result = predict_folder(model, str(photos), tmp_path / "out", score=0.0)
    content = json.loads((tmp_path / "out" / "detections.json").read_text())
    sizes = {i["id"]: (i["file_name"], i["height"], i["width"]) for i in content["images"]}
    assert sizes == {0: ("a.png", 80, 50), 1: ("b.JPG", 60, 90), 2: ("sub/a.png", 64, 64)}
    assert len(content["detections"]) == result["detections"]
    for row in content["detections"]:
        name, height, width = sizes[row["image_id"]]
        assert row["file_name"] == name
        assert row["category_id"] == row["category_index"] + 7
        assert mask_api.decode(row["segmentation"]).shape == (height, width)
        x, y, w, h = row["bbox"]
        assert 0 <= x < x + w <= width + 1e-3
        assert 0 <= y < y + h <= height + 1e-3
    none = predict_folder(model, str(photos / "a.png"), tmp_path / "one", score=1.0)
    assert (none["images"], none["detections"]) == (1, 0)
    assert (tmp_path / "one" / "a.png").exists()


def test_photos_are_not_overwritten_and_results_are_not_read_as_photos(model, photos, tmp_path):
    before = {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()}
    with pytest.raises(DatasetError, match="would be overwritten"):
        predict_folder(model, str(photos), photos)
    with pytest.raises(DatasetError, match="would be overwritten"):
        predict_folder(model, str(photos / "a.png"), photos)
    for _ in range(2):
        assert predict_folder(model, str(photos), photos / "out")["images"] == 3
    assert {path: path.read_bytes() for path in before} == before


def test_all_bad_photos_are_listed_before_anything_is_written(model, photos, tmp_path):
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "text.png").write_text("hello")
    with pytest.raises(DatasetError) as raised:
        predict_folder(model, str(photos), tmp_path / "out")
    assert "2 of 5 images" in str(raised.value)
    assert "empty.jpg" in str(raised.value)
    assert "text.png" in str(raised.value)
    assert not (tmp_path / "out").exists()
    with pytest.raises(DatasetError, match="is not a folder with"):
        predict_folder(model, str(tmp_path / "nowhere"), tmp_path / "out")


def test_a_full_disk_is_reported_and_leaves_no_partial_picture(
    model, photos, tmp_path, monkeypatch
):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full_disk)
    with pytest.raises(StorageError, match="No space left on device"):
        predict_folder(model, str(photos), tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_an_unknown_model_is_answered_with_those_that_exist(registered_model):
    uri = registered_model.handle.tracking_uri
    with pytest.raises(RegistryError, match=r"tiny \(aliases: champion\)"):
        load_registered_model("models:/tinny@champion", tracking=uri)
    with pytest.raises(RegistryError, match=r"models:/tiny/99 is not in .*tiny \(aliases:"):
        load_registered_model("models:/tiny/99", tracking=uri)
    with pytest.raises(RegistryError, match="must be models:/NAME@ALIAS"):
        load_registered_model("tiny", tracking=uri)


def test_a_missing_registry_is_not_created_and_one_nearby_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    (tmp_path / "runs" / "quickstart" / "mlflow.db").touch()
    with pytest.raises(StorageError) as raised:
        load_registered_model("models:/tiny@champion")
    assert "--tracking-uri sqlite:///runs/quickstart/mlflow.db" in str(raised.value)
    assert not (tmp_path / "runs" / "mlflow.db").exists()
