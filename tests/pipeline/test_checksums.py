"""Files that a run writes have checksums, and every reader of them refuses a changed one."""

import subprocess
from pathlib import Path

import pytest

from pipeline import checksums
from pipeline.errors import DatasetError, StorageError
from pipeline.evaluation.checkpoint_metrics import load_metrics, save_metrics
from pipeline.evaluation.cityscapes_files import evaluate_cityscapes
from pipeline.evaluation.cityscapes_submission import write_submission
from pipeline.evaluation.coco_files import read_json, write_detections
from tests.object_stores import s3_bucket

FRAME = "aachen_000000_000019"


def flip_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def write_some_detections(folder: Path) -> Path:
    file = folder / "detections.json"
    write_detections(str(file), [{"image_id": 1, "category_id": 1, "score": 0.5}] * 3)
    return file


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path):
    if request.param == "local":
        yield str(tmp_path)
        return
    with s3_bucket() as bucket:
        yield f"{bucket}/run"


def test_a_file_is_read_back_and_a_changed_one_is_refused_with_the_way_out(folder):
    checksums.write_file(f"{folder}/a.json", b"1")
    checksums.write_file(f"{folder}/b.json", b"2")
    checksums.write_file(f"{folder}/a.json", b"3")
    assert checksums.read_file(f"{folder}/a.json") == b"3"
    checksums.storage.write_bytes_atomic(f"{folder}/a.json", b"4")
    with pytest.raises(StorageError, match=r"a\.json was changed .*delete its line in SHA256SUMS"):
        checksums.read_file(f"{folder}/a.json")
    assert checksums.find_changed(folder) == ["a.json"]
    assert checksums.read_file(f"{folder}/b.json") == b"2"


def test_a_write_that_is_cut_off_leaves_no_wrong_checksum(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    checksums.write_file(str(file), b"1")
    write = checksums.storage.write_bytes_atomic

    def crash_after_the_file(uri, data):
        write(uri, data)
        if uri == str(file):
            raise KeyboardInterrupt

    monkeypatch.setattr(checksums.storage, "write_bytes_atomic", crash_after_the_file)
    with pytest.raises(KeyboardInterrupt):
        checksums.write_file(str(file), b"2")
    assert checksums.read_file(str(file)) == b"2"


def test_sha256sum_reads_the_lines_and_ours_are_added_to_those_of_others(tmp_path):
    (tmp_path / "theirs").write_bytes(b"x")
    lines = subprocess.run(
        ["sha256sum", "theirs"], cwd=tmp_path, capture_output=True, check=True, timeout=10
    ).stdout
    (tmp_path / "SHA256SUMS").write_bytes(lines)
    checksums.write_file(str(tmp_path / "ours.json"), b"1")
    done = subprocess.run(
        ["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path, capture_output=True, check=True, timeout=10
    )
    assert done.stdout == b"ours.json: OK\ntheirs: OK\n"


def test_detections_that_changed_are_not_evaluated(tmp_path):
    file = write_some_detections(tmp_path)
    assert len(read_json(str(file))) == 3
    text = file.read_text()
    file.write_text(text.replace("0.5", "0.6", 1))
    with pytest.raises(StorageError, match=r"detections\.json was changed"):
        read_json(str(file))
    (tmp_path / "SHA256SUMS").unlink()
    assert len(read_json(str(file))) == 3


def test_a_submission_that_changed_is_not_evaluated(tmp_path):
    write_submission(str(tmp_path), [], {1: f"{FRAME}_leftImg8bit.png"})
    (tmp_path / f"{FRAME}.txt").write_text("masks/a.png 26 0.5\n")
    truth = tmp_path / "gtFine"
    truth.mkdir()
    (truth / f"{FRAME}_gtFine_instanceIds.png").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"unreadable file \(1\)\n.*was changed after it was"):
        evaluate_cityscapes(str(truth), str(tmp_path))


def test_metrics_of_a_checkpoint_that_changed_do_not_decide_a_sweep(tmp_path):
    save_metrics(str(tmp_path), {"mask_ap": 0.25}, step=5)
    assert load_metrics(str(tmp_path)) == {5: {"mask_ap": 0.25}}
    flip_bit(next(tmp_path.rglob("*.json")))
    with pytest.raises(StorageError, match="was changed"):
        load_metrics(str(tmp_path))
