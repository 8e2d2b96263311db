"""Train on two workers: Ray Train and Ray Data beside a bare loop under torchrun, and one worker.

Each is a command of its own, from its start to its RESULT line. The data set has many shards, so
that what a run does per shard shows.
"""

import itertools
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.bench.coco_folder import SPLIT, write_coco_folder
from pipeline.bench.peers import cache_folder
from pipeline.bench.report import Result
from pipeline.bench.timing import Spread
from pipeline.data.ingest import ingest_dataset
from pipeline.data.ingest_config import CocoIngest
from pipeline.errors import RecipeError
from pipeline.recipe import Recipe, to_json
from pipeline.text import format_markdown

_ROWS_PER_SHARD = 32
_OBJECTS = 3
_SIZE_HW = (96, 128)
_ROOT = Path(__file__).parents[2]
_STEP = re.compile(r"step (\d+)/\d+ ")
_RATE = re.compile(r"step (\d+)/\d+ .* ([\d.]+) img/s")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRun:
    """The wall time of a run, in seconds."""

    first_step_s: float
    """From the start of the command."""
    images_per_s: float
    """Of all steps but the first ones."""
    turn_s: float
    """Added to a step where a new part of the plan starts; 0 where there are no parts."""
    end_s: float
    """From the last step to the RESULT line, with the evaluation of eight images."""
    split_share: float
    """Of a core, that the process of Ray Data's split takes during training."""


def bench_training(
    *, recipe: Recipe, shards: int, steps: int, rounds: int, print_line: Callable[[str], None]
) -> Result:
    """Run all in turn in each round, and compare their medians.

    Args:
        recipe: a small one.
        shards: of the data set.
        steps: of a run; in the middle is a checkpoint, and a new part of the plan starts.
        rounds: that count.
        print_line: called with a line after each run.
    """
    recipe = _prepare(recipe, shards, steps)
    commands: dict[str, Callable[[Path], list[str]]] = {
        "Ray, two workers": lambda file: [sys.executable, "jobs/train.py", str(file)],
        "torchrun, two workers": lambda file: [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc_per_node", "2", "-m", "pipeline.bench.bare_training", str(file)),
        ],
        "one worker on one core": lambda file: [
            *_pin_to_one_core(),
            *(sys.executable, "jobs/train.py", str(file), "--scale.num-workers", "0"),
        ],
    }
    found: dict[str, list[TrainingRun]] = {name: [] for name in commands}
    for number in range(rounds):
        for name, make_command in commands.items():
            run = _run(make_command, recipe)
            found[name].append(run)
            print_line(f"round {number + 1}/{rounds}  {name}: {run}")
    return _report(found)


def _prepare(recipe: Recipe, shards: int, steps: int) -> Recipe:
    """Draw and ingest the data once, and configure the run for it."""
    folder = cache_folder() / f"train-{shards}"
    images = shards * _ROWS_PER_SHARD
    write_coco_folder(folder, images=images, objects=_OBJECTS, size_hw=_SIZE_HW)
    ingest_dataset(
        CocoIngest(
            root=str(folder),
            split=SPLIT,
            out=str(folder / "shards" / SPLIT),
            rows_per_shard=_ROWS_PER_SHARD,
            workers=0,
        )
    )
    model: Any = recipe.model
    return replace(
        recipe,
        name="bench-train",
        model=replace(model, num_classes=80),
        data=replace(recipe.data, root=str(folder / "shards"), train_split=SPLIT, val_split=SPLIT),
        optim=replace(recipe.optim, steps=steps, decay_at=()),
        checkpoint=replace(recipe.checkpoint, every_steps=max(1, steps // 2)),
        evaluation=replace(recipe.evaluation, max_images=8),
        tracking=replace(recipe.tracking, model_name="", log_every=5),
    )


def _pin_to_one_core() -> list[str]:
    taskset = shutil.which("taskset")
    return [taskset, "-c", str(min(os.sched_getaffinity(0)))] if taskset else []


def _run(make_command: Callable[[Path], list[str]], recipe: Recipe) -> TrainingRun:
    folder = Path(tempfile.mkdtemp())
    try:
        recipe = replace(recipe, storage=str(folder))
        file = folder / "recipe.json"
        file.write_text(to_json(recipe))
        lines, split_share = _watch(make_command(file))
    finally:
        shutil.rmtree(folder)
    return summarize(lines, batch=recipe.optim.global_batch, split_share=split_share)


def _watch(command: Sequence[str]) -> tuple[list[tuple[float, str]], float]:
    """Run a command; return its lines with their seconds, and the share of the split's process."""
    began = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}
    lines: list[tuple[float, str]] = []
    samples: list[tuple[float, float]] = []
    with subprocess.Popen(  # noqa: S603  our own files
        command,
        cwd=_ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None  # noqa: S101  a pipe
        for line in process.stdout:
            now = time.perf_counter() - began
            lines.append((now, line.rstrip()))
            if _STEP.search(line):
                samples.append((now, _split_cpu_seconds(process.pid)))
    if process.returncode:
        tail = "\n".join(line for _, line in lines[-10:])
        raise RecipeError(f"{' '.join(command)} failed:\n{tail}")
    wall = samples[-1][0] - samples[0][0] if samples else 0.0
    # Each part of the plan has its own process.
    growth = [max(0.0, b[1] - a[1]) for a, b in itertools.pairwise(samples)]
    return lines, sum(growth) / wall if wall else 0.0


def _split_cpu_seconds(root: int) -> float:
    """Return the CPU seconds of Ray Data's split processes below a process."""
    parents: dict[int, int] = {}
    seconds: dict[int, float] = {}
    tick = os.sysconf("SC_CLK_TCK")
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                title = (entry / "cmdline").read_text()
            except OSError:  # it has ended
                continue
            parents[int(entry.name)] = int(fields[1])
            if title.startswith("ray::SplitCoordinator"):
                seconds[int(entry.name)] = (int(fields[11]) + int(fields[12])) / tick
    return sum(value for pid, value in seconds.items() if _is_below(pid, root, parents))


def _is_below(pid: int, root: int, parents: dict[int, int]) -> bool:
    while pid > 1 and pid != root:
        pid = parents.get(pid, 0)
    return pid == root


def summarize(lines: Sequence[tuple[float, str]], *, batch: int, split_share: float) -> TrainingRun:
    """Find a run's times in its lines.

    Args:
        lines: seconds and text.
        batch: images per step.
        split_share: see TrainingRun.
    """
    steps = [(at, int(m[1])) for at, line in lines if (m := _STEP.search(f"{line} "))]
    ended, result = next(
        (at, json.loads(line[7:])) for at, line in lines if line.startswith("RESULT ")
    )
    rates = [(int(m[1]), float(m[2])) for _, line in lines if (m := _RATE.search(line))]
    return TrainingRun(
        first_step_s=steps[0][0],
        images_per_s=result["images_per_s"],
        turn_s=_find_turn(rates, batch=batch),
        end_s=ended - steps[-1][0],
        split_share=split_share,
    )


def _find_turn(rates: Sequence[tuple[int, float]], *, batch: int) -> float:
    """Return by how much the window after the middle is longer than the median of the windows."""
    if len(rates) < 4:
        return 0.0
    windows = [
        (done, (done - before) * batch / rate, done - before)
        for (before, _), (done, rate) in itertools.pairwise(rates)
    ]
    step_s = statistics.median(seconds / steps for _, seconds, steps in windows)
    middle = rates[-1][0] // 2
    _, seconds, steps = next(each for each in windows if each[0] > middle)
    return max(0.0, seconds - steps * step_s)


_NAMES = {
    "first_step_s": "start to first step, s",
    "images_per_s": "images/s",
    "turn_s": "turn, s",
    "end_s": "end to RESULT, s",
    "split_share": "split's process, cores",
}


def _report(found: dict[str, list[TrainingRun]]) -> Result:
    """Print a table of the runs and one of their ratios, by round."""
    rows = [["run", *_NAMES.values()]]
    result: Result = {}
    for run, each in found.items():
        values = {name: Spread.of([getattr(one, name) for one in each]) for name in _NAMES}
        rows.append([run, *(f"{value:.2f}" for value in values.values())])
        for name, value in values.items():
            result[f"{run}: {_NAMES[name]}"] = round(value.median, 3)
    rounds = list(zip(*found.values(), strict=True))
    # Name, values, least and largest value.
    ratios: list[tuple[str, list[float], float, float]] = [
        (
            "images/s, Ray / torchrun",
            [a.images_per_s / b.images_per_s for a, b, _ in rounds],
            0.85,
            math.inf,
        ),
        (
            "start to first step, Ray / torchrun",
            [a.first_step_s / b.first_step_s for a, b, _ in rounds],
            0,
            2,
        ),
        ("turn, s", [a.turn_s for a, _, _ in rounds], 0, 1),
        (
            "images/s, two workers / twice one",
            [a.images_per_s / c.images_per_s / 2 for a, _, c in rounds],
            0.9,
            math.inf,
        ),
    ]
    table, missed = [["ratio", "value", "bar"]], []
    for name, measured, least, most in ratios:
        value = Spread.of(measured)
        met = least <= value.median <= most
        bar = f"at least {least:g}" if math.isinf(most) else f"at most {most:g}"
        table.append([name, f"{value:.2f}", f"{bar}: {'yes' if met else 'NO'}"])
        result[name] = round(value.median, 3)
        missed += [] if met else [name]
    print(f"{format_markdown(rows)}\n\n{format_markdown(table)}")  # noqa: T201  the answer
    return {**result, "missed": missed}
