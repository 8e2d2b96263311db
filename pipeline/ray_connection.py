"""Connect to Ray: the cluster of a submitted job, the one in RAY_ADDRESS, or a local one.

A Ray that happens to run on this machine is never used: the files of a killed Ray look like a
running one. Ray itself waits for minutes for a cluster that is gone, so everything that it reads
from the environment is checked first, in seconds. Token authentication is left to the environment.
"""

import logging
import math
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray
from ray._common.utils import get_default_ray_temp_dir, get_ray_address_file
from ray._private.services import get_ray_address_from_environment

from pipeline.errors import SetupError
from pipeline.ray_address import uses_cluster

_log = logging.getLogger(__name__)

_FORWARDED = ("BSM_", "MLFLOW_", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION")
"""Prefixes of the variables forwarded to workers of an existing cluster. Keys and tokens are never
forwarded: Ray's dashboard shows these variables."""

_SECRET = ("TOKEN", "PASSWORD", "SECRET", "KEY")

_ANSWER_TIMEOUT_S = 10.0

_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
"""Longest path of a Unix socket."""
_LONGEST_SOCKET = "session_2000-01-01_00-00-00_000000_{pid}/sockets/plasma_store"
"""The longest path that Ray appends to its temporary folder."""

_NO_CLUSTER = (
    "start Ray there (ray start --head), correct RAY_ADDRESS (HEAD:6379), or leave it out to use "
    "this machine: unset RAY_ADDRESS"
)


def accepts_connections(address: str) -> bool:
    """Tell whether a server listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    with suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), timeout=5):
        return True
    return False


def connect(*, cpus: float = 0) -> None:
    """Connect to Ray, or start it on this machine, unless already connected.

    Args:
        cpus: least number of CPUs of a local Ray, which may exceed those of the machine; an
            existing cluster is used as it is.

    Raises:
        SetupError: see `check_environment`, or Ray refuses the connection.
    """
    if ray.is_initialized():
        return
    check_environment()
    # Ray reads these when it starts a process.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # A worker that stands still is restarted after three minutes instead of ten.
    os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", "180")
    # On every start, this logger explains at length that tokens are on.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    arguments = _arguments(cpus)
    local = arguments.get("address") == "local"
    if local:
        # Nobody takes this machine away with a notice; the watcher would be one more process.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    _log.info("starting Ray on this machine" if local else "connecting to Ray")
    try:
        with _own_process_group() if local else nullcontext():
            ray.init(**arguments)
    except Exception as error:  # Ray's own errors, and those of its libraries
        raise _to_setup_error(error) from error


@contextmanager
def _own_process_group() -> Iterator[None]:
    """Start processes in a group of their own, unless this process leads its group.

    `timeout` and some schedulers send SIGTERM to the whole group of a job. Ray has to live on until
    its workers have written a checkpoint; it stops with this process.
    """
    before, own = os.getpgrp(), os.getpid()
    if before != own:
        os.setpgid(0, own)
    try:
        yield
    finally:
        if before != own:
            os.setpgid(0, before)


def check_environment() -> None:
    """Check in seconds that Ray can start here, or that the cluster to connect to answers.

    Raises:
        SetupError: RAY_ADDRESS names no running cluster, or Ray's temporary folder cannot be used.
    """
    if ray.is_initialized():
        return
    if uses_cluster():
        _check_cluster(os.environ.get("RAY_ADDRESS", ""))
    else:
        _check_temporary_folder()


@contextmanager
def explain_lost_processes(work: str, *, memory_advice: str) -> Iterator[None]:
    """Say in one sentence that Ray lost a process, and leave errors of the code in it alone.

    Args:
        work: what was going on.
        memory_advice: what helps if the memory was too small; Ray advises to switch its check off.

    Raises:
        SetupError: Ray lost a process, or itself.
    """
    try:
        yield
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        if is_out_of_memory(error):
            text = f"{work}: a process was killed because its node ran out of memory"
            raise SetupError(text, memory_advice) from None
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        text = f"{work}: Ray lost a process ({type(error).__name__}: {line[:200]})"
        raise SetupError(
            text, "check it with: ray status. Then run the same command again"
        ) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether Ray killed a process because its node had too little memory."""
    return "killed due to the node running low on memory" in str(error)


def _check_cluster(named: str) -> None:
    scheme, mark, address = named.rpartition("://")
    if scheme in {"http", "https"}:
        raise _not_ray(named, "it is an address of HTTP, as the dashboard's", url=named)
    if not mark and named in {"", "auto"}:
        address = _find_running_ray()
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise SetupError(f"RAY_ADDRESS={named} is not HOST:PORT", _NO_CLUSTER)
    try:
        answer = _read_greeting(host, port)
    except OSError as error:
        reason = error.strerror or str(error)
        file = Path(get_ray_address_file(None))
        if named in {"", "auto"} and file.is_file():
            fix = f"if that Ray is gone, remove the file that it left: rm {file}"
            raise _no_cluster("auto", f"{file} names {address}: {reason}", fix) from None
        raise _no_cluster(named, reason) from None
    # Ray's first bytes are a frame of HTTP/2; the dashboard and others answer in text.
    if answer[:4].isascii() and answer[:1].isalpha():
        line = answer.decode(errors="replace").split("\r")[0]
        url = f"http://{address}" if answer.startswith(b"HTTP/") else ""
        raise _not_ray(named, f"Ray does not answer there, but something with {line!r}", url=url)


def _find_running_ray() -> str:
    """Return the address that Ray takes for "auto"."""
    try:
        return str(get_ray_address_from_environment("auto", None))
    except ConnectionError:
        raise _no_cluster("auto", "no Ray runs on this machine") from None


def _read_greeting(host: str, port: int) -> bytes:
    """Connect, and return the first bytes that the other side sends."""
    with socket.create_connection((host, port), timeout=_ANSWER_TIMEOUT_S) as connection:
        try:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return connection.recv(64)
        except ConnectionError:  # it does not like the question
            return b""


def _not_ray(named: str, reason: str, *, url: str) -> SetupError:
    fix = "use the head's own port: export RAY_ADDRESS=HEAD:6379"
    if url:
        fix += f"; the dashboard's is for ray job submit: export RAY_API_SERVER_ADDRESS={url}"
    return _no_cluster(named, reason, fix)


def _no_cluster(named: str, reason: str, fix: str = _NO_CLUSTER) -> SetupError:
    return SetupError(f"cannot connect to RAY_ADDRESS={named}: {reason}", fix)


def _check_temporary_folder() -> None:
    folder = Path(get_default_ray_temp_dir())  # type: ignore[no-untyped-call]
    variable = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    fix = "give Ray another folder: export RAY_TMPDIR=/tmp"
    length = len(os.fsencode(folder / _LONGEST_SOCKET.format(pid=os.getpid())))
    if length > _SOCKET_BYTES:
        raise SetupError(
            f"{variable}={folder.parent} is too long for Ray: the paths of its sockets would have "
            f"{length} bytes, and the system allows {_SOCKET_BYTES}",
            fix.replace("another", "a shorter"),
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"Ray cannot make its folder {folder}: {error.strerror}", fix) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SetupError(f"Ray cannot write to its folder {folder}", fix)


def _to_setup_error(error: Exception) -> SetupError:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    # The text may contain tracebacks; their last line is the error.
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    line = next((line for line in reversed(lines) if "Error" in line), lines[0])
    reason = line.partition(". ")[0][:300]
    if "Authentication" in f"{type(cause).__name__} {reason}":
        fix = (
            "use the cluster's token: export RAY_AUTH_MODE=token, and set RAY_AUTH_TOKEN or "
            "~/.ray/auth_token as on the head"
        )
        return _no_cluster(os.environ.get("RAY_ADDRESS", ""), reason, fix)
    if uses_cluster():
        return _no_cluster(os.environ.get("RAY_ADDRESS", ""), reason)
    temporary: str = get_default_ray_temp_dir()  # type: ignore[no-untyped-call]
    logs = Path(temporary, "session_latest", "logs")
    return SetupError(
        f"Ray does not start on this machine: {reason}",
        "try again when the machine is less busy, or do without Ray: --scale.num-workers 0 for "
        f"training, --workers 0 for others; Ray's logs are in {logs}",
    )


def _arguments(cpus: float) -> dict[str, Any]:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        # A submitted job: its runtime environment already reaches the workers.
        return quiet
    if uses_cluster():
        return quiet | {"runtime_env": {"env_vars": _forwarded_env()}}
    # More CPUs than the machine has are allowed, so two workers fit on a laptop with two cores.
    count = max(os.cpu_count() or 1, math.ceil(cpus))
    # Train V2 needs the dashboard to query the state of its actors.
    return quiet | {"address": "local", "include_dashboard": True, "num_cpus": count}


def _forwarded_env() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(_FORWARDED) and not any(part in name for part in _SECRET)
    }
