"""Paths and URIs: reading, atomic writing, listing, and errors that say what to do."""

from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from pipeline import storage
from pipeline.errors import StorageError


@pytest.fixture(scope="module")
def bucket():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test-key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
        boto3.client("s3").create_bucket(Bucket="bucket")
        yield "s3://bucket/some/place"
    server.stop()


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path):
    return (
        str(tmp_path / "place") if request.param == "local" else request.getfixturevalue("bucket")
    )


def test_what_is_written_is_read_listed_and_removed(place):
    first, second = storage.join(place, "a", "one.json"), storage.join(place, "a", "two.bin")
    storage.write_bytes_atomic(first, b"1")
    storage.write_bytes_atomic(second, b"2" * 70_000)
    storage.write_bytes_atomic(first, b"11")
    assert storage.read_bytes(first) == b"11"
    assert storage.list_files(storage.join(place, "a")) == [first, second]
    assert storage.list_files(storage.join(place, "a"), suffix=".json") == [first]
    assert storage.exists(first)
    storage.remove(first)
    storage.remove(first)
    assert not storage.exists(first)
    storage.remove(storage.join(place, "a"))
    assert storage.list_files(place, recursive=True) == []


def test_gzip_bytes_come_back_as_they_are(place):
    """Arrow would unpack a .gz by its name; the encoded file must stay untouched."""
    name = storage.join(place, "photo.gz")
    storage.write_bytes_atomic(name, b"\x1f\x8bnot really")
    assert storage.read_bytes(name) == b"\x1f\x8bnot really"


def test_missing_file_is_named_with_a_hint(place):
    with pytest.raises(StorageError, match=r"cannot read .*nowhere.*check"):
        storage.read_bytes(storage.join(place, "nowhere"))


def test_failed_write_leaves_the_old_file_and_no_draft(tmp_path, monkeypatch):
    target = tmp_path / "file"
    storage.write_bytes_atomic(str(target), b"old")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full_disk)
    with pytest.raises(StorageError, match="free space"):
        storage.write_bytes_atomic(str(target), b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("uri", "rule"),
    [
        ("ftp://host/x", "unknown scheme"),
        ("s3:///x", "bucket is missing"),
        ("s3://key:hunter2@bucket/x", "do not belong into a URI"),
        ("s3://bucket/x?secret_key=hunter2", "do not belong into a URI"),
    ],
)
def test_bad_uri_is_refused_without_repeating_a_secret(uri, rule):
    with pytest.raises(StorageError, match=rule) as caught:
        storage.resolve(uri)
    assert "hunter2" not in str(caught.value)


def test_absolute_holds_in_every_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("runs") == str(tmp_path / "runs")
    assert storage.absolute("~/x") == str(Path.home() / "x")
    assert storage.absolute("s3://bucket/x/") == "s3://bucket/x"
