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
from pipeline.prediction import folder
from pipeline.prediction.folder import predict_folder
from pipeline.registry.predict import load_registered_model
from tests.heavy_imports import list_heavy

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
        [sys.executable, "-X", "importtime", str(JOB), *arguments],
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
    # MLflow and timm import pandas and scipy, torchvision and torch.
    used = {"mlflow", "pandas", "scipy", "timm", "torch", "torchvision"}
    assert list_heavy(done.stderr) <= used
    written = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")}
    assert written == {"detections.json", "a.png", "b.JPG", "sub/a.png"}
    with Image.open(tmp_path / "out" / "b.JPG") as picture:
        assert picture.size == (576, 384)


def test_detections_are_coco_rows_with_file_names(model, photos, tmp_path, caplog):
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
    assert "no object has a score" not in caplog.text
    none = predict_folder(model, str(photos / "a.png"), tmp_path / "one", score=1.0)
    assert (none["images"], none["detections"]) == (1, 0)
    assert "no object has a score of 1 or more; see others with --score" in caplog.text
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


def test_a_bad_photo_costs_that_photo_with_its_reason(model, photos, tmp_path, caplog):
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "text.png").write_text("hello")
    cut = (photos / "b.JPG").read_bytes()
    (photos / "cut.jpg").write_bytes(cut[: len(cut) // 2])
    (photos / "gone.jpg").symlink_to(photos / "nowhere.jpg")
    result = predict_folder(model, str(photos), tmp_path / "out")
    assert (result["images"], result["left_out"]) == (3, 4)
    content = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [each["file_name"] for each in content["images"]] == ["a.png", "b.JPG", "sub/a.png"]
    reasons = {each["file_name"]: each["reason"] for each in content["left_out"]}
    assert list(reasons) == ["cut.jpg", "empty.jpg", "gone.jpg", "text.png"]
    assert "truncated" in reasons["cut.jpg"]
    assert reasons["gone.jpg"] == "No such file or directory"
    assert "left out 4 of 7 photos" in caplog.text
    for name, reason in list(reasons.items())[:3]:
        assert f"{name}: {reason}" in caplog.text


def test_without_a_readable_photo_nothing_is_written(model, photos, tmp_path):
    (photos / "empty.jpg").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"none of 1 photo can be read(.|\n)*the file is empty"):
        predict_folder(model, str(photos / "empty.jpg"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(DatasetError, match="as a pattern it matches no file"):
        predict_folder(model, str(tmp_path / "nowhere"), tmp_path / "out")
    (photos / "notes").mkdir()
    (photos / "notes" / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(DatasetError, match=r"has no JPEG, .* file: \.heic 1 \(such as a\.heic\)"):
        predict_folder(model, str(photos / "notes"), tmp_path / "out")


def test_every_format_and_linked_folder_is_read_and_the_rest_is_counted(
    model, photos, tmp_path, caplog
):
    pixels = Image.open(photos / "a.png").convert("RGB")
    other = tmp_path / "other"
    other.mkdir()
    for name in ("c.webp", "d.tif", "e.bmp", "c.webp.jpg"):
        pixels.save(other / name)
    pixels.save(other / "f.jfif", "JPEG")
    pixels.save(other / "no ending", "PNG")
    pixels.save(other / "g.gif")
    (photos / "linked").symlink_to(other)
    (other / "up").symlink_to(photos)
    os.mkfifo(other / "pipe")
    result = predict_folder(model, str(photos), tmp_path / "out")
    assert (result["images"], result["left_out"], result["other_files"]) == (9, 0, 4)
    others = ".gif 1, .txt 1, link to a folder that is read already 1, no ending 1"
    assert f"not read: {others} (such as notes.txt, " in caplog.text
    written = {path.name for path in (tmp_path / "out" / "linked").iterdir()}
    assert written == {
        *("c.webp.jpg", "c.webp.jpg.jpg", "d.tif.jpg", "e.bmp.jpg", "f.jfif", "no ending.jpg"),
    }


def test_a_score_that_is_no_share_is_refused(model, photos, tmp_path):
    with pytest.raises(DatasetError, match=r"score_threshold must be in \[0, 1\], got 50"):
        predict_folder(model, str(photos), tmp_path / "out", score=50)


def test_a_narrow_photo_is_predicted_and_drawn(model, tmp_path):
    folder = tmp_path / "strips"
    folder.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 8000, 3), dtype=np.uint8)).save(folder / "wide.jpg")
    Image.fromarray(rng.integers(0, 255, (8000, 1, 3), dtype=np.uint8)).save(folder / "thin.png")
    # No JPEG has a side of more than 65,535 pixels.
    Image.fromarray(np.zeros((70_000, 3, 3), np.uint8)).save(folder / "long.tif")
    result = predict_folder(model, str(folder), tmp_path / "out", score=0.0)
    assert (result["images"], result["left_out"]) == (3, 0)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"detections.json", "SHA256SUMS", "wide.jpg", "thin.png", "long.tif.png"}


def test_a_photo_that_does_not_fit_into_memory_costs_that_photo(
    model, photos, tmp_path, monkeypatch
):
    draw = folder.draw_instances

    def fail_on_narrow(pixels, instances):
        if pixels.shape[:2] == (80, 50):
            raise MemoryError("Unable to allocate 9 GiB")
        return draw(pixels, instances)

    monkeypatch.setattr(folder, "draw_instances", fail_on_narrow)
    result = predict_folder(model, str(photos), tmp_path / "out", score=0.0)
    assert (result["images"], result["left_out"]) == (2, 1)
    content = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {each["file_name"] for each in content["detections"]} == {"b.JPG", "sub/a.png"}
    (left_out,) = content["left_out"]
    assert left_out["reason"] == "not enough memory to predict it: Unable to allocate 9 GiB"


def test_what_decoding_changes_is_said_with_numbers(model, tmp_path, caplog):
    folder = tmp_path / "xrays"
    folder.mkdir()
    Image.fromarray(np.full((60, 80), 4000, np.uint16)).save(folder / "a.png")
    predict_folder(model, str(folder), tmp_path / "out")
    assert "a.png: values up to 4000 become values up to 15" in caplog.text


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
    known = r"tiny \(newest version: models:/tiny/1, aliases: champion\)"
    with pytest.raises(RegistryError, match=known):
        load_registered_model("models:/tinny@champion", tracking=uri)
    with pytest.raises(RegistryError, match=r"models:/tiny/99 is not in .*tiny \(newest"):
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
