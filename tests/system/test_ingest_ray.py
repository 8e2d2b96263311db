import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.data.audit import audit
from pipeline.data.ingest import ingest_dataset
from pipeline.data.ingest_config import CityscapesIngest, CityscapesSemanticIngest, CocoIngest
from pipeline.errors import DatasetError
from tests.object_stores import s3_bucket
from tests.pipeline.data.coco_samples import SPLIT, Breaker, small_coco
from tests.pipeline.data.street_samples import cityscapes, zip_folders

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

JOB = Path(__file__).parents[2] / "jobs" / "ingest.py"


def _hashes(uri: str) -> dict[str, str]:
    return {
        path.rsplit("/", 1)[-1]: hashlib.sha256(storage.read_bytes(path)).hexdigest()
        for path in storage.list_files(uri)
    }


def _config(root, out, **changes):
    return CocoIngest(root=str(root), split=SPLIT, out=str(out), **changes)


@pytest.fixture
def s3():
    with s3_bucket() as uri:
        yield uri


def run_job(root: str, out: str, *flags: str) -> dict:
    """Ingest in a subprocess; if it starts a Ray of its own, the tasks inherit the environment."""
    done = subprocess.run(
        [sys.executable, str(JOB), "coco", "--root", root, "--split", SPLIT, "--out", out, *flags],
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))


@pytest.fixture
def killed_ray(monkeypatch):
    """Leave the files of a killed Ray, for which another would wait."""
    # A short path, because sockets are in it.
    with tempfile.TemporaryDirectory(prefix="r-", ignore_cleanup_errors=True) as folder:
        (Path(folder) / "ray").mkdir()
        (Path(folder) / "ray" / "ray_current_cluster").write_text("127.0.0.1:9")
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield


def test_ray_with_an_object_store_equals_one_process_on_a_disk(tmp_path, s3, killed_ray):
    root = small_coco(tmp_path / "coco", images=100)
    breaker = Breaker(root)
    for kind in ("image_missing", "image_unreadable", "box_outside", "unknown_category"):
        breaker.apply(kind)
    breaker.save()
    upload(root, f"{s3}/coco")
    alone = ingest_dataset(
        _config(root, tmp_path / "out", workers=0, on_bad="fix", rows_per_shard=32)
    )
    flags = ("--on-bad", "fix", "--rows-per-shard", "32")

    on_ray = run_job(f"{s3}/coco", f"{s3}/out", *flags, "--workers", "2")

    assert _hashes(f"{s3}/out") == _hashes(str(tmp_path / "out"))
    assert on_ray["shards"] == 4
    for key in ("images", "annotations", "rejects", "fixed", "fingerprint"):
        assert on_ray[key] == alone[key]
    assert audit(f"{s3}/out", deep=True)["images"] == 98
    # Shards with a missing or broken image are made again: it may have been repaired.
    again = run_job(f"{s3}/coco", f"{s3}/out", *flags)
    assert again["shards_kept"] >= 2
    assert again["fingerprint"] == alone["fingerprint"]


def upload(root: Path, uri: str) -> None:
    for path in root.rglob("*"):
        if path.is_file():
            name = str(path.relative_to(root))
            storage.write_bytes_atomic(storage.join(uri, name), path.read_bytes())


def test_reads_cityscapes_from_an_object_store_unpacked_and_zipped(tmp_path, s3):
    root = cityscapes(tmp_path / "streets")
    given = {"split": "train", "workers": 0}
    here = ingest_dataset(CityscapesSemanticIngest(root=str(root), out=f"{tmp_path}/out", **given))
    upload(root, f"{s3}/folders")
    zip_folders(root, "leftImg8bit_trainvaltest.zip", "leftImg8bit")
    zip_folders(root, "gtFine_trainvaltest.zip", "gtFine")
    upload(root, f"{s3}/zips")
    for path in ("folders", "zips"):
        out = f"{s3}/out-{path}"
        config = CityscapesSemanticIngest(root=f"{s3}/{path}", out=out, **given)
        assert ingest_dataset(config)["images"] == 6
        assert _hashes(out) == _hashes(f"{tmp_path}/out")
        assert audit(out, deep=True)["fingerprint"] == here["fingerprint"]
    with pytest.raises(DatasetError, match=r"gtFine/val: not in s3://bucket/zips"):
        ingest_dataset(CityscapesIngest(root=f"{s3}/zips", split="val", out=f"{s3}/x", workers=0))


def test_ray_equals_one_process_on_cityscapes(one_ray, tmp_path):
    root = cityscapes(tmp_path / "streets", frames=40)
    for config in (CityscapesIngest, CityscapesSemanticIngest):
        name = f"{tmp_path}/{config.verb}"
        for workers in (0, 2):
            out = f"{name}-{workers}"
            ingest_dataset(
                config(root=str(root), split="train", out=out, workers=workers, rows_per_shard=32)
            )
        assert len(_hashes(f"{name}-0")) == 4
        assert _hashes(f"{name}-0") == _hashes(f"{name}-2")


def test_a_killed_job_resumes_and_ends_with_the_same_bytes(tmp_path):
    root = small_coco(tmp_path / "coco", images=1200)
    out = tmp_path / "out"
    command = [sys.executable, str(JOB), "coco", "--root", str(root), "--split", SPLIT]
    command += ["--workers", "0", "--rows-per-shard", "32", "--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([*command, str(out)], stdout=subprocess.PIPE, env=environment) as job:
        deadline = time.monotonic() + 120
        while not (out / "part-00002.parquet").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        job.send_signal(signal.SIGKILL)
    assert job.returncode == -signal.SIGKILL
    assert not (out / "dataset.json").exists()

    again = subprocess.run(
        [*command, str(out)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env=environment,
    )
    result = json.loads(again.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert 3 <= result["shards_kept"] < result["shards"] == 38

    whole = tmp_path / "whole"
    ingest_dataset(_config(root, whole, workers=0, rows_per_shard=32))
    assert _hashes(str(out)) == _hashes(str(whole))


def test_the_job_exits_with_2_and_the_table_of_problems(tmp_path):
    root = small_coco(tmp_path / "coco", images=12)
    breaker = Breaker(root)
    breaker.apply("mask_empty")
    breaker.save()
    command = [sys.executable, str(JOB), "coco", "--root", str(root), "--split", SPLIT]
    command += ["--workers", "0", "--out", str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stdout + ended.stderr
    assert "mask_empty" in ended.stderr
    assert "RESULT" not in ended.stdout
    # The suggested command works as printed.
    line = next(line for line in ended.stderr.splitlines() if line.endswith("--on-bad drop"))
    words = line.split()
    words[:2] = [sys.executable, str(JOB)]
    assert subprocess.run(words, capture_output=True, timeout=120, check=False).returncode == 0
