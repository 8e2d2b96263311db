"""What runs on each node: it looks at the node from inside.

A node may lack this package, or have another version of it; finding that out is the point. So this
file travels to the node as it is, imports nothing but the standard library at its top, and answers
in dicts.
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
_LONGEST = 400
"""Characters of an error."""
_SHM = "/dev/shm"  # noqa: S108  looked at, not written to


class NodeProbe:
    """An actor on one node; a call that hangs does not keep the next one from running."""

    def facts(self, session_folder: str) -> dict[str, Any]:
        """Say what is installed and how much room there is."""
        return facts(session_folder)

    def now(self) -> float:
        """Say what time it is."""
        return time.time()

    def auth_mode(self) -> str:
        """Say how Ray was told to authenticate."""
        return os.environ.get("RAY_AUTH_MODE", "")

    def write(self, uri: str, text: str) -> str:
        """Write a file as training does; "" or what went wrong."""
        return _tried(lambda: _storage().write_bytes_atomic(uri, text.encode()))

    def read(self, uri: str, text: str) -> str:
        """Read a file; "" when it holds the text, or what went wrong."""

        def compare() -> None:
            if not _storage().exists(uri):
                raise FileNotFoundError("not there")
            if _storage().read_bytes(uri) != text.encode():
                raise ValueError("other bytes came back than were written")

        return _tried(compare)

    def remove(self, uri: str) -> str:
        """Delete a folder; "" or what went wrong."""
        return _tried(lambda: _storage().remove(uri))

    def track(self, uri: str, timeout_s: float) -> tuple[str, float]:
        """Ask the tracking server something; "" or what went wrong, and the seconds it took."""
        seconds: list[float] = []
        error = _tried(lambda: _ask_tracking(uri, timeout_s, seconds))
        return error, sum(seconds)


def facts(session_folder: str) -> dict[str, Any]:
    """Look at this node: the fields of facts.Answer."""
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
    """Hash this package's sources: a version number does not change with every edit."""
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
    """Read torch's own note of how it was built; importing torch would take seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return ""
    note = Path(next(iter(spec.submodule_search_locations))) / "version.py"
    return str(runpy.run_path(str(note)).get("cuda") or "") if note.exists() else ""


def _gpus() -> tuple[list[dict[str, Any]], str]:
    # Ray hides GPUs from a process that reserved none; the driver's own tool sees them all.
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
        return [], f"nvidia-smi gave no answer in {_DRIVER_TIMEOUT_S} s"
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
    from pipeline import storage  # noqa: PLC0415  it may be missing here

    return storage


def _ask_tracking(uri: str, timeout_s: float, seconds: list[float]) -> None:
    # First without MLflow, which takes seconds to import: a server that is away is away.
    if uri.startswith("http"):
        with (
            _timed(seconds),
            contextlib.suppress(urllib.error.HTTPError),  # it answers; what it says comes next
            urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=timeout_s),  # noqa: S310
        ):
            pass
    from pipeline.tracking.stores import client  # noqa: PLC0415

    # Making it imports MLflow, which says nothing of the server.
    store = client(uri)
    with _timed(seconds):
        store.search_experiments(max_results=1)


@contextlib.contextmanager
def _timed(seconds: list[float]) -> Iterator[None]:
    began = time.monotonic()
    try:
        yield
    finally:
        seconds.append(time.monotonic() - began)


def _tried(action: Any) -> str:  # noqa: ANN401  a call without a result
    try:
        action()
    except Exception as error:
        text = str(error).strip().partition("\n")[0]
        return textwrap.shorten(f"{type(error).__name__}: {text}", _LONGEST, placeholder=" ...")
    return ""
