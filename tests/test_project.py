"""The rules of the house that a tool cannot check."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
MAX_LINES = 450
MAX_NAMES = 10


def committed() -> list[Path]:
    """Files of the project: what git tracks, or everything there is in an unpacked archive."""
    done = subprocess.run(
        ["git", "ls-files"], check=False, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    if done.returncode == 0:
        return [ROOT / line for line in done.stdout.splitlines() if (ROOT / line).is_file()]
    hidden = {".venv", "runs", "data", "__pycache__", ".git"}
    return [p for p in ROOT.rglob("*") if p.is_file() and not hidden & set(p.parts)]


FILES = committed()
TEXTS = {path: path.read_text() for path in FILES if path.suffix not in {".png", ".jpg"}}
SOURCES = {path: text for path, text in TEXTS.items() if path.suffix == ".py"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line.split(";")[0].strip().split("==") for line in lines]
    return {canonicalize_name(name): version for name, version in pins}


def test_files_can_be_read_in_one_sitting():
    long = {
        str(p.relative_to(ROOT)): n for p, t in SOURCES.items() if (n := t.count("\n")) > MAX_LINES
    }
    assert long == {}


def test_text_is_ascii():
    strange = [str(path.relative_to(ROOT)) for path, text in TEXTS.items() if not text.isascii()]
    assert strange == []


def test_no_file_is_called_after_nothing():
    forbidden = {"utils.py", "helpers.py", "common.py", "misc.py", "base.py"}
    assert [path for path in SOURCES if path.name in forbidden] == []


def test_package_files_only_export():
    for path, text in SOURCES.items():
        if path.name == "__init__.py" and "tests" not in path.parts:
            exported = re.search(r"__all__ = \[(.*?)\]", text, re.DOTALL)
            assert exported is None or exported[1].count('"') // 2 <= MAX_NAMES, path


def test_every_file_opens_with_what_it_is():
    silent = [
        str(path.relative_to(ROOT))
        for path, text in SOURCES.items()
        if not text.removeprefix("#!/usr/bin/env python\n").startswith('"""')
        and "tests" not in path.relative_to(ROOT).parts
    ]
    assert silent == []


def test_no_registry_address_is_written_down():
    # Where packages come from is the installing machine's own setting.
    address = re.compile(r"--(extra-)?index-url\s+\S+://|--find-links\s+\S|://[^\s/]*pypi", re.I)
    found = [
        p.name for p, text in TEXTS.items() if address.search(text) and p.name != "test_project.py"
    ]
    assert found == []


def test_the_lock_holds_plain_pins():
    pin = re.compile(r"[a-z0-9][a-z0-9._-]*==[^\s;@]+( ; .+)?")
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert [line for line in lines if not pin.fullmatch(line)] == []


def test_the_lock_satisfies_what_the_project_asks_for():
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"]["dev"]]
    pins = locked()
    for requirement in map(Requirement, wanted):
        version = pins.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not in the lock; type: make lock"
        assert requirement.specifier.contains(version), f"{requirement} but {version} is locked"


def test_every_make_target_in_the_readme_exists():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    for page in ("README.md", "CONTRIBUTING.md", ".ci/run"):
        named = set(re.findall(r"^\s*make ([a-z]+)", (ROOT / page).read_text(), re.MULTILINE))
        assert named <= targets, page
    assert "quickstart" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_file_the_readme_names_exists(page):
    text = (ROOT / page).read_text()
    named = set(re.findall(r"\b(?:bsm|pipeline|jobs|tests)/[\w./]+", text))
    assert named, "the page names files"
    missing = [name for name in named if not (ROOT / name.rstrip(".")).exists()]
    assert missing == []


def test_the_pictures_of_the_readme_are_there_and_small():
    pictures = re.findall(r"!\[[^]]+\]\((\S+)\)", (ROOT / "README.md").read_text())
    assert pictures
    for name in pictures:
        assert (ROOT / name).stat().st_size <= 500_000, name


def test_the_readmes_map_every_source_file():
    text = (ROOT / "README.md").read_text() + (ROOT / "jobs" / "README.md").read_text()
    for path in SOURCES:
        relative = path.relative_to(ROOT)
        if relative.parts[0] in {"bsm", "pipeline", "jobs"} and path.name != "__init__.py":
            assert path.name in text, f"{relative} is not in the README's map of files"


def test_scripts_can_be_executed():
    for path, text in TEXTS.items():
        if text.startswith("#!"):
            assert path.stat().st_mode & 0o111, path
