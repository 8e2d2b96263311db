"""Every job starts in each of the ways the README shows."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.coco_r101 import ROWS
from pipeline.recipe import from_json

ROOT = Path(__file__).parents[2]
JOBS = sorted(path for path in (ROOT / "jobs").glob("*.py") if path.name != "__init__.py")


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(
        [str(part) for part in command],
        check=False,
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_a_job_has_a_shebang_the_exec_bit_and_its_command_in_the_docstring(job):
    text = job.read_text()
    assert text.startswith("#!/usr/bin/env python\n")
    assert os.access(job, os.X_OK)
    docstring = text.split('"""')[1]
    assert f"jobs/{job.name}" in docstring


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_a_job_explains_itself_from_anywhere(job, tmp_path):
    done = run(job, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


def test_a_recipe_runs_where_only_the_working_directory_is_on_the_path(tmp_path):
    # As on a cluster: a copy of the tree on PYTHONPATH, found before an installed one.
    copy = tmp_path / "copy"
    for package in ("bsm", "pipeline", "jobs"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("*.pyc"))
    code = "import jobs.coco_r101 as job, pipeline.cli as cli; print(job.__file__, cli.__file__)"
    done = run("env", f"PYTHONPATH={copy}", "python", "-c", code, cwd=copy)
    assert done.returncode == 0, done.stderr
    assert all(path.startswith(str(copy)) for path in done.stdout.split())


@pytest.mark.parametrize("row", [None, "squeeze", "plain"])
def test_print_recipe_gives_the_recipe_of_the_row(row):
    done = run("python", "jobs/coco_r101.py", *([row] if row else []), "--print-recipe")
    assert from_json(done.stdout) == ROWS[row or "squeeze"].recipe


def test_the_rows_of_a_job_are_listed_with_the_papers_numbers():
    done = run("jobs/coco_r101.py", "--list")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line for line in done.stdout.splitlines() if line.startswith("plain ")]
    assert [line.split(maxsplit=1)[1] for line in lines] == [
        "Mask R-CNN   mask AP 37.1 (Table 1f, val2017)"
    ]
    helped = run("jobs/coco_r101.py", "--help").stdout
    assert "mask AP 37.1 (Table 1f, val2017)" in helped
    assert "--optim.steps" in helped


def test_all_experiments_are_listed():
    done = run("python", "jobs/experiments.py")
    assert done.returncode == 0, done.stderr
    assert "mIoU 63.5" in done.stdout
