"""Local object stores with an empty bucket."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
import pytest
import requests
from moto.server import ThreadedMotoServer

from pipeline import storage

ACCESS_KEY = "AKIASESAMEOPENTHEDOOR"
SECRET_KEY = "open-sesame-4d1f"  # noqa: S105  it opens nothing

_GS_SERVER = """
import signal, sys
from gcp_storage_emulator.server import create_server
server = create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="bucket")
server.start()
print("ready", flush=True)
signal.pause()
"""


def wait_for_object(uri: str, *, timeout_s: float = 240) -> None:
    """Wait until an object is there; after the timeout go on, to the assertion that needs it."""
    deadline = time.monotonic() + timeout_s
    while not storage.exists(uri) and time.monotonic() < deadline:
        time.sleep(0.05)


@contextmanager
def s3_bucket() -> Iterator[str]:
    """Start an S3 server; yield s3://bucket, with credentials and endpoint in the environment."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
        # All moto servers of a process share their state, and another test may have filled it.
        requests.post(f"http://{host}:{port}/moto-api/reset", timeout=30).raise_for_status()
        boto3.client("s3").create_bucket(Bucket="bucket")
        yield "s3://bucket"
    server.stop()


@contextmanager
def gs_bucket() -> Iterator[str]:
    """Start a Google Cloud Storage emulator; yield gs://bucket, its endpoint in the environment."""
    # In a separate process: Google's client holds the GIL while it opens a file.
    port = find_free_port()
    command = [sys.executable, "-c", _GS_SERVER, str(port)]
    with (
        pytest.MonkeyPatch.context() as patch,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server,
    ):
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            patch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", f"http://127.0.0.1:{port}")
            yield "gs://bucket"
        finally:
            server.terminate()


def find_free_port() -> int:
    """Return an unused port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def read_objects(bucket: str) -> dict[str, bytes]:
    """Read all objects of an S3 bucket, by key."""
    store = boto3.client("s3")
    pages = store.get_paginator("list_objects_v2").paginate(Bucket=bucket.removeprefix("s3://"))
    return {
        entry["Key"]: store.get_object(Bucket="bucket", Key=entry["Key"])["Body"].read()
        for page in pages
        for entry in page.get("Contents", ())
    }


def child_environment() -> dict[str, str]:
    """Return the environment of a child process with one thread."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}
