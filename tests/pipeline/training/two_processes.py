"""Two workers as processes of their own, without Ray."""

import json
import subprocess
import sys
from pathlib import Path

from pipeline.recipe import Recipe, to_json


def in_two_processes(module: str, recipe: Recipe, tmp_path: Path, *more: str) -> list[dict]:
    """Run a module twice, with a recipe, its rank, where the two meet, and more arguments.

    Returns:
        What each printed last, as JSON.
    """
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", module),
                *(to_json(recipe), str(rank), str(tmp_path / "rendezvous"), *more),
            ],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0]
    return [json.loads(output.splitlines()[-1]) for output in outputs]
