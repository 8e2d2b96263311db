"""What a run ran on: Python, the packages that decide numbers, and the commit of the code."""

import importlib.metadata
import platform
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PACKAGES = ("boundary-squeeze", "torch", "torchvision", "timm", "kornia", "ray", "mlflow", "numpy")


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """Versions of what there is."""

    python: str
    system: str
    packages: dict[str, str]
    """Those that are installed, by name."""
    git_commit: str
    """"" where the code is in no repository (a submitted job)."""


def environment() -> Environment:
    """Look at this process's own."""
    found = {name: _version(name) for name in _PACKAGES}
    return Environment(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        packages={name: version for name, version in found.items() if version},
        git_commit=_git_commit(),
    )


def requirements_here() -> str:
    """Pin everything that is installed, a package a line."""
    installed: Iterable[Any] = importlib.metadata.distributions()
    lines = {f"{d.metadata['Name']}=={d.version}" for d in installed if d.metadata["Name"]}
    return "\n".join(sorted(lines, key=str.lower)) + "\n"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _git_commit() -> str:
    """Give the commit of the code's own repository, "" where there is none (a submitted job)."""
    git, root = shutil.which("git"), Path(__file__).resolve().parents[2]
    if git is None or not (root / ".git").exists():
        return ""
    command = [
        git,
        "-C",
        str(root),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    try:
        done = subprocess.run(  # noqa: S603  fixed arguments
            command, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
