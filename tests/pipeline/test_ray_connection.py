"""What Ray reads from the environment is checked in seconds, and said in one sentence."""

import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from copy import copy
from pathlib import Path

import pytest
import ray

from pipeline import ray_connection
from pipeline.data.ingest import ingest_dataset
from pipeline.data.ingest_config import CocoIngest
from pipeline.errors import SetupError
from pipeline.ray_connection import check_environment, connect, explain_lost_processes

DASHBOARD = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
HTTP2_SETTINGS = b"\x00\x00\x12\x04\x00\x00\x00\x00\x00"


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the Ray that other tests of this process may have started."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Return a new folder with a path that is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="r-") as folder:
        yield Path(folder)


@pytest.fixture
def serve() -> Iterator[Callable[[bytes], str]]:
    """Return a function that serves bytes to every connection, and returns the address."""
    listeners = []

    def answer(listener: socket.socket, data: bytes) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(100)
                connection.sendall(data)

    def start(data: bytes) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        threading.Thread(target=answer, args=(listener, data), daemon=True).start()
        return f"127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def unused_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def refuse(monkeypatch: pytest.MonkeyPatch, **environment: str) -> str:
    """Return the error that an environment gives, in seconds."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    started = time.monotonic()
    with pytest.raises(SetupError) as raised:
        connect()
    assert time.monotonic() - started < 20
    assert raised.value.exit_code == 2
    return str(raised.value)


def test_a_cluster_that_is_gone_is_not_waited_for(monkeypatch):
    address = unused_address()
    text = refuse(monkeypatch, RAY_ADDRESS=address)
    assert text.startswith(f"cannot connect to RAY_ADDRESS={address}: Connection refused; start")
    assert text.endswith("unset RAY_ADDRESS")


def test_data_is_not_listed_before_ray_is_checked(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_ADDRESS", unused_address())
    config = CocoIngest(root=str(tmp_path / "none"), split="train", out=str(tmp_path), workers=1)
    with pytest.raises(SetupError, match="RAY_ADDRESS"):
        ingest_dataset(config)


def test_the_address_of_the_dashboard_is_recognized(monkeypatch, serve):
    address = serve(DASHBOARD)
    for named in (address, f"http://{address}"):
        text = refuse(monkeypatch, RAY_ADDRESS=named)
        assert "export RAY_ADDRESS=HEAD:6379" in text
        assert f"export RAY_API_SERVER_ADDRESS=http://{address}" in text


def test_another_server_is_not_called_a_dashboard(monkeypatch, serve):
    text = refuse(monkeypatch, RAY_ADDRESS=serve(b"SSH-2.0-OpenSSH_9.6\r\n"))
    assert "Ray does not answer there, but something with 'SSH-2.0-OpenSSH_9.6'; " in text
    assert "RAY_API_SERVER_ADDRESS" not in text


@pytest.mark.parametrize("named", ["", "local"])
def test_an_empty_address_is_this_machine_not_the_file_of_another_ray(monkeypatch, named):
    monkeypatch.setenv("RAY_ADDRESS", named)
    given = {}
    monkeypatch.setattr(ray, "init", lambda **arguments: given.update(arguments))
    connect(cpus=1)
    assert given["address"] == "local"


def test_ray_passes(monkeypatch, serve):
    monkeypatch.setenv("RAY_ADDRESS", serve(HTTP2_SETTINGS))
    check_environment()


@pytest.mark.parametrize("address", ["head", "head:", "head:ray", "ray://head"])
def test_an_address_without_a_port_is_refused(monkeypatch, address):
    assert f"RAY_ADDRESS={address} is not HOST:PORT" in refuse(monkeypatch, RAY_ADDRESS=address)


def test_the_file_of_a_killed_ray_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(ray_connection, "get_ray_address_from_environment", _read_file)
    address, file = unused_address(), tmp_path / "ray" / "ray_current_cluster"
    file.parent.mkdir()
    file.write_text(address)
    text = refuse(monkeypatch, RAY_ADDRESS="auto", RAY_TMPDIR=str(tmp_path))
    assert f"RAY_ADDRESS=auto: {file} names {address}: Connection refused; " in text
    assert text.endswith(f"rm {file}")


def _read_file(*_: object) -> str:
    """Replace Ray's search, which finds the Ray of other tests."""
    with open(ray_connection.get_ray_address_file(None)) as stream:  # noqa: PTH123
        return stream.read()


def test_no_ray_on_this_machine_is_said(monkeypatch):
    def search(*_: object) -> str:
        raise ConnectionError("Could not find any running Ray instance. Please specify")

    monkeypatch.setattr(ray_connection, "get_ray_address_from_environment", search)
    assert "RAY_ADDRESS=auto: no Ray runs on this machine; " in refuse(
        monkeypatch, RAY_ADDRESS="auto"
    )


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_temporary_folder_too_long_for_sockets_is_refused(monkeypatch, tmp_path, variable):
    folder = str(tmp_path / ("long" * 20))
    text = refuse(monkeypatch, **{variable: folder})
    assert text.startswith(f"{variable}={folder} is too long for Ray: ")
    assert text.endswith("export RAY_TMPDIR=/tmp")


def test_the_limit_is_that_of_ray(monkeypatch, short_path):
    validate = pytest.importorskip("ray._private.utils").validate_socket_filepath
    name = f"ray/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
    longest = f"{short_path}/".ljust(107 - len(name) - 1, "x")
    validate(f"{longest}/{name}")
    monkeypatch.setenv("RAY_TMPDIR", longest)
    check_environment()
    assert "108 bytes" in refuse(monkeypatch, RAY_TMPDIR=f"{longest}x")


def test_a_temporary_folder_that_is_a_file_is_refused(monkeypatch, short_path):
    (short_path / "file").write_text("")
    text = refuse(monkeypatch, RAY_TMPDIR=str(short_path / "file"))
    assert f"cannot make its folder {short_path}/file/ray: Not a directory; " in text


def test_rays_own_errors_are_one_sentence(monkeypatch, serve):
    def init(**_: object) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with 2.1. Please install it")

    monkeypatch.setattr(ray, "init", init)
    address = serve(HTTP2_SETTINGS)
    text = refuse(monkeypatch, RAY_ADDRESS=address)
    assert text.startswith(
        f"cannot connect to RAY_ADDRESS={address}: Version mismatch: The cluster was started with "
        "2.1; "
    )
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert "Ray does not start on this machine: Version" in refuse(monkeypatch)


def test_the_error_survives_a_worker_process():
    # Copying rebuilds an object as pickle does.
    again = copy(SetupError("no Ray", "start it"))
    assert (str(again), again.fix) == ("no Ray; start it", "start it")


OUT_OF_MEMORY = (
    "Task was killed due to the node running low on memory.\nTo disable worker killing, set the "
    "environment variable `RAY_memory_monitor_refresh_ms` to zero."
)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            ray.exceptions.OutOfMemoryError(OUT_OF_MEMORY),
            "ingest: a process was killed because its node ran out of memory; use --workers 1",
        ),
        (
            ray.exceptions.LocalRayletDiedError(),
            "ingest: Ray lost a process (LocalRayletDiedError: The task's local raylet died. Check "
            "raylet.out for more information.); check it with: ray status. Then run the same "
            "command again",
        ),
    ],
)
def test_a_lost_process_is_one_sentence(error, reason):
    with (
        pytest.raises(SetupError) as raised,
        explain_lost_processes("ingest", memory_advice="use --workers 1"),
    ):
        raise error
    assert str(raised.value) == reason


def test_an_error_of_the_code_in_a_process_keeps_its_traceback():
    error = ray.exceptions.RayTaskError("f", "Traceback ...", ValueError("a bug"))
    with (
        pytest.raises(ray.exceptions.RayTaskError),
        explain_lost_processes("ingest", memory_advice=""),
    ):
        raise error


def test_processes_of_a_local_ray_are_in_a_group_of_their_own():
    """A signal to the group of a job does not reach them."""
    before = os.getpgrp()
    with ray_connection._own_process_group(), subprocess.Popen(["sleep", "30"]) as child:
        group = os.getpgid(child.pid)
        child.kill()
    assert group == os.getpid()
    assert os.getpgrp() == before
