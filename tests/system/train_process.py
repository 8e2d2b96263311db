"""A run in a process of its own, which tests read, kill and terminate."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.recipe import Recipe, to_json
from pipeline.training import checkpoint
from tests.object_stores import child_environment

JOB = Path(__file__).parents[2] / "jobs" / "train.py"


def recipe_file(recipe: Recipe, folder: Path) -> Path:
    return folder / f"{recipe.name}-{recipe.tracking.log_every}.json"


@contextmanager
def start(recipe: Recipe, folder: Path, **environment: str) -> Iterator[subprocess.Popen]:
    """Start a job; kill it at the end if it still runs."""
    file = recipe_file(recipe, folder)
    file.write_text(to_json(recipe))
    with subprocess.Popen(
        [sys.executable, JOB, file],
        cwd=folder,
        env=child_environment() | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen, pattern: str) -> str:
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.search(pattern, line):
            return "".join(lines)
    raise AssertionError("".join(lines))


def terminate(process: subprocess.Popen, recipe: Recipe, folder: Path) -> tuple[str, int]:
    """Send SIGTERM, check checkpoint and message; return the output and the checkpoint's step."""
    process.send_signal(signal.SIGTERM)
    text = process.stdout.read()
    assert process.wait() == 143, text
    step = int(re.search(r"stopped by SIGTERM at step (\d+), which has a checkpoint\.", text)[1])
    assert f"Resume with: python {JOB} {recipe_file(recipe, folder)}" in text
    assert "Traceback" not in text
    run_uri = f"{recipe.storage}/{recipe.name}"
    assert checkpoint.find_latest(run_uri).step == step
    assert not list(Path(run_uri, "lock").iterdir())
    return text, step
