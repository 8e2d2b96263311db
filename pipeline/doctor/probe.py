"""The probe actor that runs on each node.

A node may lack this package or have another version of it, and the probe must find that out. So the
code of this file is pickled by value, imports only the standard library at its top, and returns
dicts.
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import runpy
import shutil
import subprocess
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_PACKAGES = ("ray", "torch", "torchvision", "mlflow", "pyarrow", "boundary-squeeze")
_NVIDIA_SMI = "nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader"
_DRIVER_TIMEOUT_S = 20
_MAX_ERROR = 400
_SHM = "/dev/shm"  # noqa: S108  read only


class NodeProbe:
    """An actor on one node; its calls run concurrently, so one that hangs does not block others."""

    def facts(self, session_folder: str) -> dict[str, Any]:
        """Return the facts of this node."""
        return collect_facts(session_folder)

    def now(self) -> float:
        """Return the time of this node."""
        return time.time()

    def auth_mode(self) -> str:
        """Return RAY_AUTH_MODE."""
        return os.environ.get("RAY_AUTH_MODE", "")

    def write(self, uri: str, text: str) -> str:
        """Write a file as training does; return the error, or ""."""
        return _catch_error(lambda: _storage().write_bytes_atomic(uri, text.encode()))

    def read(self, uri: str, text: str) -> str:
        """Compare a file with a text; return the error, or ""."""

        def compare() -> None:
            if not _storage().exists(uri):
                raise FileNotFoundError("not there")
            if _storage().read_bytes(uri) != text.encode():
                raise ValueError("the bytes differ from those written")

        return _catch_error(compare)

    def remove(self, uri: str) -> str:
        """Delete a folder; return the error, or ""."""
        return _catch_error(lambda: _storage().remove(uri))

    def track(self, uri: str, timeout_s: float) -> tuple[str, float]:
        """Query the tracking server; return the error, or "", and the seconds of the requests."""
        seconds: list[float] = []
        error = _catch_error(lambda: _query_tracking(uri, timeout_s, seconds))
        return error, sum(seconds)


def collect_facts(session_folder: str) -> dict[str, Any]:
    """Return the fields of facts.NodeFacts."""
    gpus, gpus_error = _gpus()
    disk = shutil.disk_usage(session_folder if Path(session_folder).exists() else "/")
    return {
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "code": _code(),
        "cuda_build": _cuda_build(),
        "gpus": gpus,
        "gpus_error": gpus_error,
        "disk_free_bytes": disk.free,
        "disk_total_bytes": disk.total,
        "shm_total_bytes": shutil.disk_usage(_SHM).total if Path(_SHM).is_dir() else 0,
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _code() -> str:
    """Hash this package's sources, since an edit does not change the version number."""
    hashed = hashlib.sha256()
    for package in ("bsm", "pipeline"):
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            return ""
        root = Path(next(iter(spec.submodule_search_locations)))
        for path in sorted(root.rglob("*.py")):
            hashed.update(str(path.relative_to(root)).encode())
            hashed.update(path.read_bytes())
    return hashed.hexdigest()[:8]


def _cuda_build() -> str:
    """Read the CUDA version from torch/version.py; importing torch would take seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return ""
    version_file = Path(next(iter(spec.submodule_search_locations))) / "version.py"
    return str(runpy.run_path(str(version_file)).get("cuda") or "") if version_file.exists() else ""


def _gpus() -> tuple[list[dict[str, Any]], str]:
    # Ray hides GPUs from a process that reserved none; nvidia-smi lists them all.
    if shutil.which("nvidia-smi") is None:
        return [], ""
    try:
        done = subprocess.run(  # noqa: S603  fixed arguments
            _NVIDIA_SMI.split(),
            capture_output=True,
            text=True,
            timeout=_DRIVER_TIMEOUT_S,
            check=True,
        )
    except subprocess.TimeoutExpired:
        return [], f"nvidia-smi: no answer in {_DRIVER_TIMEOUT_S} s"
    except (OSError, subprocess.CalledProcessError) as error:
        output = getattr(error, "stdout", "") or str(error)
        return [], f"nvidia-smi: {output.strip().splitlines()[0]}"
    found = []
    for line in done.stdout.splitlines():
        name, memory, driver = (part.strip() for part in line.rsplit(",", 2))
        size = "".join(filter(str.isdigit, memory))
        found.append({"name": name, "memory_mib": int(size or 0), "driver": driver})
    return found, ""


def _storage() -> Any:  # noqa: ANN401  the module
    from pipeline import storage  # noqa: PLC0415  may be missing on this node

    return storage


def _query_tracking(uri: str, timeout_s: float, seconds: list[float]) -> None:
    # First without MLflow, which takes seconds to import.
    if uri.startswith("http"):
        with (
            _measure(seconds),
            contextlib.suppress(urllib.error.HTTPError),  # any answer will do
            urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=timeout_s),  # noqa: S310
        ):
            pass
    from pipeline.tracking.stores import create_client  # noqa: PLC0415

    # Creating the client imports MLflow, which must not count as the server's time.
    store = create_client(uri)
    with _measure(seconds):
        store.search_experiments(max_results=1)


@contextlib.contextmanager
def _measure(seconds: list[float]) -> Iterator[None]:
    began = time.monotonic()
    try:
        yield
    finally:
        seconds.append(time.monotonic() - began)


def _catch_error(action: Any) -> str:  # noqa: ANN401  a call without a result
    try:
        action()
    except Exception as error:
        text = str(error).strip().partition("\n")[0]
        return textwrap.shorten(f"{type(error).__name__}: {text}", _MAX_ERROR, placeholder=" ...")
    return ""
