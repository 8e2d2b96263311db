"""Record Python, the packages that affect results, and the commit of the code."""

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
    """Versions of Python, the system, the packages and the code."""

    python: str
    system: str
    packages: dict[str, str]
    """Version by package name; installed packages only."""
    git_commit: str
    """"" outside of a repository, as in a submitted job."""


def read_environment() -> Environment:
    """Read the environment of this process."""
    versions = {name: _version(name) for name in _PACKAGES}
    return Environment(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        packages={name: version for name, version in versions.items() if version},
        git_commit=_git_commit(),
    )


def freeze_requirements() -> str:
    """Pin every installed package, one per line."""
    installed: Iterable[Any] = importlib.metadata.distributions()
    lines = {f"{d.metadata['Name']}=={d.version}" for d in installed if d.metadata["Name"]}
    return "\n".join(sorted(lines, key=str.lower)) + "\n"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _git_commit() -> str:
    git, root = shutil.which("git"), Path(__file__).resolve().parents[2]
    if git is None or not (root / ".git").exists():
        return ""
    command = [git, "-C", str(root)]
    command += ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(  # noqa: S603  fixed arguments
            command, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
