"""Paths and URIs: reading, atomic writing, listing, and errors that say what to do."""

import logging
import subprocess
import sys
import time
from pathlib import Path

import boto3
import pytest

from pipeline import storage
from pipeline.errors import StorageError
from tests.object_stores import child_environment, find_free_port, gs_bucket, s3_bucket

GS_VARIABLE = "CLOUD_STORAGE_EMULATOR_ENDPOINT"


@pytest.fixture(scope="module")
def bucket():
    with s3_bucket() as uri:
        yield f"{uri}/some/place"


@pytest.fixture(scope="module")
def google_bucket():
    with gs_bucket() as uri:
        yield f"{uri}/some/place"


@pytest.fixture(params=["local", "s3", "gs"])
def place(request, tmp_path):
    match request.param:
        case "s3":
            return request.getfixturevalue("bucket")
        case "gs":
            return request.getfixturevalue("google_bucket")
    return str(tmp_path / "place")


def test_files_are_written_read_listed_and_removed(place):
    first, second = storage.join(place, "a", "one.json"), storage.join(place, "a", "two.bin")
    storage.write_bytes_atomic(first, b"1")
    storage.write_bytes_atomic(second, b"2" * 70_000)
    storage.write_bytes_atomic(first, b"11")
    assert storage.read_bytes(first) == b"11"
    assert storage.list_files(storage.join(place, "a")) == [first, second]
    assert storage.list_files(storage.join(place, "a"), suffix=".json") == [first]
    assert storage.exists(first)
    assert (storage.file_size(first), storage.file_size(second)) == (2, 70_000)
    assert storage.file_size(storage.join(place, "a")) is None
    with storage.open_file(second) as file:
        file.seek(69_990)
        assert (file.size(), len(file.read())) == (70_000, 10)
    storage.remove(first)
    storage.remove(first)
    assert not storage.exists(first)
    storage.remove(storage.join(place, "a"))
    assert storage.list_files(place, recursive=True) == []


def test_gzip_files_are_not_decompressed(place):
    """Arrow streams decompress a .gz by its name; read_bytes must not."""
    name = storage.join(place, "photo.gz")
    storage.write_bytes_atomic(name, b"\x1f\x8bnot really")
    assert storage.read_bytes(name) == b"\x1f\x8bnot really"


def test_errors_name_the_missing_file_with_a_hint(place):
    with pytest.raises(StorageError, match=r"cannot read .*nowhere.*check"):
        storage.read_bytes(storage.join(place, "nowhere"))


def test_a_failed_write_keeps_the_old_file_and_no_draft(tmp_path, monkeypatch):
    target = tmp_path / "file"
    storage.write_bytes_atomic(str(target), b"old")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full_disk)
    with pytest.raises(StorageError, match="free space"):
        storage.write_bytes_atomic(str(target), b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_killed_writer_keeps_the_old_object(bucket):
    target = storage.join(bucket, "large")
    storage.write_bytes_atomic(target, b"old")
    code = (
        "import sys; from pipeline import storage\n"
        "storage.write_bytes_atomic(sys.argv[1], bytes(300_000_000))"
    )
    uploads = boto3.client("s3").list_multipart_uploads
    with subprocess.Popen([sys.executable, "-c", code, target], env=child_environment()) as writer:
        deadline = time.monotonic() + 60
        while "Uploads" not in uploads(Bucket="bucket") and time.monotonic() < deadline:
            time.sleep(0.01)
        writer.kill()
    assert writer.returncode < 0, "the writer finished before it was killed"
    assert storage.read_bytes(target) == b"old"
    assert storage.list_files(bucket, suffix="large") == [target]


def test_a_large_object_is_read_in_one_request(bucket, caplog):
    target = storage.join(bucket, "checkpoint")
    storage.write_bytes_atomic(target, bytes(2_000_000))
    with caplog.at_level(logging.INFO, logger="werkzeug"):
        assert len(storage.read_bytes(target)) == 2_000_000
    assert sum("GET /bucket/some/place/checkpoint" in line for line in caplog.messages) == 1


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_errors_name_the_missing_bucket(scheme, bucket, google_bucket):
    with pytest.raises(StorageError, match=r"cannot write .*nobody.*check the bucket's name"):
        storage.write_bytes_atomic(f"{scheme}://nobody-has-this/x", b"1")


@pytest.mark.parametrize(
    ("scheme", "variable"),
    [("s3", "AWS_ENDPOINT_URL"), ("s3", "AWS_ENDPOINT_URL_S3"), ("gs", GS_VARIABLE)],
)
def test_a_store_that_does_not_listen_is_an_error_in_seconds(scheme, variable, monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", GS_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    place = f"127.0.0.1:{find_free_port()}"
    monkeypatch.setenv(variable, f"http://{place}")
    started = time.monotonic()
    with pytest.raises(StorageError) as error:
        storage.exists(f"{scheme}://bucket/a")
    assert time.monotonic() - started < 30
    assert str(error.value) == (
        f"cannot access {scheme}://bucket/a: no connection to http://{place} (Could not connect to "
        f"server); start it, or correct {variable}"
    )


@pytest.mark.parametrize(
    ("uri", "rule"),
    [
        ("ftp://host/x", "unknown scheme"),
        ("s3:///x", "bucket is missing"),
        ("s3://key:hunter2@bucket/x", "do not belong in a URI"),
        ("s3://bucket/x?secret_key=hunter2", "do not belong in a URI"),
        ("file://runs/x", "write file:///FOLDER, or the plain path runs/x"),
    ],
)
def test_invalid_uris_are_rejected_without_repeating_a_secret(uri, rule):
    with pytest.raises(StorageError, match=rule) as caught:
        storage.resolve(uri)
    assert "hunter2" not in str(caught.value)


def test_absolute_does_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("runs") == str(tmp_path / "runs")
    assert storage.absolute("~/x") == str(Path.home() / "x")
    assert storage.absolute("s3://bucket/x/") == "s3://bucket/x"
    assert storage.absolute("s3://bucket/x#2") == "s3://bucket/x#2"
    assert storage.absolute("file:///x?#2") == "/x?#2"


@pytest.mark.parametrize("action", [storage.read_bytes, storage.exists, storage.list_files])
def test_a_zero_byte_in_a_path_is_a_storage_error(tmp_path, action):
    with pytest.raises(StorageError, match=r"cannot .*\\x00.*correct the path"):
        action(f"{tmp_path}/a\0b")


def test_a_full_disk_for_temporary_files_is_named():
    with (
        pytest.raises(StorageError, match=r"no space left on device.*export TMPDIR=/PATH"),
        storage.temporary_folder() as folder,
    ):
        Path("/dev/full").write_text("x")
    assert not folder.exists()
    with pytest.raises(KeyError), storage.temporary_folder():
        raise KeyError("another error")
    with pytest.raises(StorageError, match=r"^the run's own disk"), storage.temporary_folder():
        raise StorageError("the run's own disk: No space left on device")
