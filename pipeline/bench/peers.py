"""Environments of programs that benchmarks compare with; the project never depends on them."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import RecipeError


def cache_folder() -> Path:
    """Return the folder in which benchmarks keep environments and drawn files."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "boundary-squeeze-bench"


def find_python(requirements: Sequence[str], *, given: str = "") -> str:
    """Return a Python that has some packages, in an environment of its own; make it once.

    Args:
        requirements: as pip takes them.
        given: a Python that has them already; "" makes one in the cache.

    Raises:
        RecipeError: they cannot be installed.
    """
    if given:
        return given
    digest = hashlib.sha256("\n".join([sys.version, *requirements]).encode()).hexdigest()[:12]
    folder = cache_folder() / f"peers-{digest}"
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        shutil.rmtree(folder, ignore_errors=True)
        for command in _list_commands(folder, python, requirements):
            done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603
            if done.returncode:
                raise RecipeError(
                    f"cannot install {', '.join(requirements)}: {done.stderr.strip()[-500:]}. Name "
                    "a Python that has them: --peers-python PYTHON"
                )
        ready.touch()
    return str(python)


def _list_commands(folder: Path, python: Path, requirements: Sequence[str]) -> list[list[str]]:
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv:
        return [
            [uv, "venv", "--python", sys.executable, str(folder)],
            [uv, "pip", "install", "--python", str(python), *requirements],
        ]
    return [
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", *requirements],
    ]
