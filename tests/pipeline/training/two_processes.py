"""Run two workers as separate processes, without Ray."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from pipeline.recipe import Recipe, to_json
from pipeline.training.step import WorkerContext


def run_in_two_processes(module: str, recipe: Recipe, tmp_path: Path, *more: str) -> list[dict]:
    """Run a module twice, with the arguments: recipe, rank, rendezvous file, and more.

    Returns:
        The last line that each process printed, as JSON.
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


@contextmanager
def process_group(rank: str, rendezvous: str) -> Iterator[WorkerContext]:
    """Join the two processes' gloo group, and leave it together."""
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=int(rank), world_size=2
    )
    yield WorkerContext(rank=int(rank), world_size=2)
    dist.barrier()
    dist.destroy_process_group()
