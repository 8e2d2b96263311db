"""Project rules that no tool checks."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import bsm
import pipeline

ROOT = Path(__file__).parents[1]
MAX_LINES = 450
MAX_NAMES = 10
EXPORTING = {Path("bsm"), Path("pipeline")}


def list_files() -> list[Path]:
    """List the files that git tracks, or all files of an unpacked archive."""
    done = subprocess.run(
        ["git", "ls-files"], check=False, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    if done.returncode == 0:
        return [ROOT / line for line in done.stdout.splitlines() if (ROOT / line).is_file()]
    hidden = {".venv", "runs", "data", "__pycache__", ".git"}
    return [p for p in ROOT.rglob("*") if p.is_file() and not hidden & set(p.parts)]


FILES = list_files()
TEXTS = {path: path.read_text() for path in FILES if path.suffix not in {".png", ".jpg", ".zip"}}
SOURCES = {path: text for path, text in TEXTS.items() if path.suffix == ".py"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def read_lock() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line.split(";")[0].strip().split("==") for line in lines]
    return {canonicalize_name(name): version for name, version in pins}


def test_files_are_not_too_long():
    long = {
        str(p.relative_to(ROOT)): n for p, t in SOURCES.items() if (n := t.count("\n")) > MAX_LINES
    }
    assert long == {}


def test_text_is_ascii():
    not_ascii = [str(path.relative_to(ROOT)) for path, text in TEXTS.items() if not text.isascii()]
    assert not_ascii == []


def test_no_file_has_a_generic_name():
    forbidden = {"utils.py", "helpers.py", "common.py", "misc.py", "base.py"}
    assert [path for path in SOURCES if path.name in forbidden] == []


def test_package_files_only_export_names():
    for path in (p.relative_to(ROOT) for p in SOURCES if p.name == "__init__.py"):
        if path.parts[0] in {"bsm", "pipeline", "jobs"} and path.parent not in EXPORTING:
            # Only a docstring: every name is imported from its own file.
            assert len(ast.parse((ROOT / path).read_text()).body) == 1, path
    for package in (bsm, pipeline):
        assert len(package.__all__) <= MAX_NAMES
        assert all(hasattr(package, name) for name in package.__all__)


def test_every_source_file_has_a_docstring():
    undocumented = [
        str(path.relative_to(ROOT))
        for path, text in SOURCES.items()
        if not text.removeprefix("#!/usr/bin/env python\n").startswith(('"""', 'r"""'))
        and "tests" not in path.relative_to(ROOT).parts
    ]
    assert undocumented == []


def test_no_registry_address_is_committed():
    # The package index is a setting of the installing machine.
    address = re.compile(r"--(extra-)?index-url\s+\S+://|--find-links\s+\S|://[^\s/]*pypi", re.I)
    found = [
        p.name for p, text in TEXTS.items() if address.search(text) and p.name != "test_project.py"
    ]
    assert found == []


def test_the_lock_has_only_plain_pins():
    pin = re.compile(r"[a-z0-9][a-z0-9._-]*==[^\s;@]+( ; .+)?")
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert [line for line in lines if not pin.fullmatch(line)] == []


def test_the_lock_satisfies_the_requirements():
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"]["dev"]]
    pins = read_lock()
    for requirement in map(Requirement, wanted):
        version = pins.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not in the lock; type: make lock"
        assert requirement.specifier.contains(version), f"{requirement} but {version} is locked"


def test_scripts_are_executable():
    for path, text in TEXTS.items():
        if text.startswith("#!"):
            assert path.stat().st_mode & 0o111, path
