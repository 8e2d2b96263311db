"""Train for long on a cluster of two nodes while faults come at random, and watch the memory.

One run follows the other on the same cluster and the same MLflow server. The first one is left
alone; each later one must end with the same samples and the same weights, bit for bit.
"""

import csv
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.drill.cluster_faults import node_recipe, with_token
from pipeline.drill.command import TIMEOUT_S, Command
from pipeline.drill.comparison import check_epochs, compare_samples, has_same_weights
from pipeline.drill.drills import check_is_new
from pipeline.drill.leaks import find_leaks, find_processes
from pipeline.drill.process_watch import Growth, ProcessWatch, measure_growth, watch_processes
from pipeline.drill.scene import STEP, Scene, read_result, write_shards
from pipeline.drill.soak_faults import RESTARTING, SOAK_FAULTS, Target, schedule_faults
from pipeline.drill.tracking_server import TrackingServer, tracking_server
from pipeline.drill.two_nodes import TwoNodes, two_nodes
from pipeline.errors import DrillError
from pipeline.recipe import Recipe
from pipeline.text import format_count, format_table

_log = logging.getLogger(__name__)

_CHECKPOINT_EVERY, _LOG_EVERY = 50, 10
_MANY = 1_000_000
"""Restarts that a run allows itself."""
_CACHES = ("torchinductor_",)
"""Beginnings of the names of temporary folders that are meant to stay."""


@dataclass(kw_only=True)
class Soak:
    """A soak that runs."""

    folder: Path
    scene: Scene
    steps: int
    end_s: float
    """Of time.monotonic; no fault comes later."""
    nodes: TwoNodes
    tracking: TrackingServer
    draw: random.Random
    faults: Iterator[tuple[float, str]]
    watch: ProcessWatch
    expected: Mapping[str, Any] = field(default_factory=dict)
    """RESULT of the run that was left alone."""
    problems: list[str] = field(default_factory=list)
    injected: list[tuple[float, str, float]] = field(default_factory=list)
    """Minute, fault, and seconds to the next progress line."""
    runs: int = 0

    @property
    def minute(self) -> float:
        """Minutes since the start."""
        return (time.monotonic() - self.watch.started_s) / 60

    def train(self, *, is_calm: bool) -> None:
        """Train one run to its end, with faults until the time is over."""
        name = f"run-{self.runs}"
        recipe = self._recipe(name)

        def start() -> Command:
            words = (sys.executable, "-u", *self.scene.training_command(recipe))
            return Command(words, self.scene.environment)

        target = Target(start=start, nodes=self.nodes, tracking=self.tracking, draw=self.draw)
        try:
            # The first step: a fault while a job starts is another drill.
            target.job.wait_for(STEP.format(step=r"\d+"))
            while not is_calm and time.monotonic() < self.end_s:
                pause_s, fault = next(self.faults)
                if not self._ends_within(target.job, pause_s) and time.monotonic() < self.end_s:
                    self._inject(fault, target)
                if target.job.process.poll() is not None:
                    break
            _wait_for_end(target.job)
            if target.job.find("start the run again"):
                # MLflow was away at the end, and the log asks for this.
                target.restart_job()
                _wait_for_end(target.job)
            self._judge(name, read_result(target.job))
        finally:
            target.job.kill()
            (self.folder / f"{name}.log").write_text("\n".join(target.log))
        self.runs += 1

    def _recipe(self, name: str) -> Recipe:
        recipe = replace(node_recipe(self.scene), name=name)
        return replace(
            recipe,
            optim=replace(recipe.optim, steps=self.steps),
            scale=replace(recipe.scale, max_failures=_MANY),
            checkpoint=replace(recipe.checkpoint, every_steps=_CHECKPOINT_EVERY, keep=2),
            tracking=replace(recipe.tracking, uri=self.tracking.uri, log_every=_LOG_EVERY),
        )

    def _ends_within(self, job: Command, seconds: float) -> bool:
        end_s = min(time.monotonic() + seconds, self.end_s)
        while job.process.poll() is None and time.monotonic() < end_s:
            time.sleep(0.2)
        return job.process.poll() is not None

    def _inject(self, fault: str, target: Target) -> None:
        minute, started_s, lines = self.minute, time.monotonic(), len(target.job.lines)
        before = target.job
        SOAK_FAULTS[fault](target)
        after = lines - 1 if target.job is before else -1
        if fault in RESTARTING:
            # Lines of steps before the fault may still arrive.
            after = target.job.wait_for("workers? ready, |^RESULT ", after=after).number
        end = r"^RESULT |nothing to train"
        progress = target.job.wait_for(f"{STEP.format(step='[0-9]+')}|{end}", after=after - 1)
        seconds = max(progress.at_s - started_s, 0.0)
        self.injected.append((round(minute, 2), fault, round(seconds, 1)))
        with (self.folder / "faults.csv").open("a", newline="") as stream:
            csv.writer(stream).writerow(self.injected[-1])
        _log.info(
            "minute %.1f: %s, %.0f s to the next line: %s", minute, fault, seconds, progress.text
        )

    def _judge(self, name: str, result: Mapping[str, Any]) -> None:
        check_epochs(result)
        _log.info("minute %.1f: %s has finished", self.minute, name)
        if not self.expected:
            self.expected = result
            return
        lost, repeated = compare_samples(result, self.expected)
        if lost or repeated:
            self.problems.append(f"{name}: {lost} samples were lost and {repeated} repeated")
        if not has_same_weights(result, self.expected):
            self.problems.append(f"{name}: the weights differ from those of the first run")
        # Only the first run is needed again.
        storage.remove(str(Path(result["checkpoint"]).parents[1]))


def soak(
    *,
    minutes: float = 60,
    seed: int = 0,
    steps: int = 400,
    fault_every_s: float = 60,
    out: str = "runs/soak",
) -> dict[str, Any]:
    """Train on two nodes on this machine while faults come at random, and watch the memory.

    OUT/memory.csv and OUT/faults.csv grow while it runs.

    Args:
        minutes: time until the last fault; the run that trains then is finished.
        seed: seed of the faults and of the pauses between them.
        steps: steps of each run. The first run has no fault, and the others are compared with it.
        fault_every_s: mean of the pauses between two faults.
        out: new folder.

    Raises:
        RecipeError: the folder is not empty.
        DrillError: something was lost or left behind, or grows.
    """
    check_is_new(out)
    # As Ctrl-C: jobs, servers and nodes end with this process.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = Path(out).absolute()
    temporary = folder / "tmp"
    temporary.mkdir(parents=True)
    # What a run leaves in it is found in the end.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}
    scene = Scene(name="soak", folder=folder, shards=write_shards(folder), environment=environment)
    with watch_processes(folder / "memory.csv") as watch:
        with _open(
            scene, watch, minutes=minutes, seed=seed, steps=steps, every_s=fault_every_s
        ) as state:
            before = _list_temporary(temporary)
            state.train(is_calm=True)
            while time.monotonic() < state.end_s:
                state.train(is_calm=False)
            leaks = find_leaks(
                state.nodes,
                state.tracking,
                files=lambda: _list_temporary(temporary) - before,
                runs=state.runs,
            )
        leaks += find_processes()
        return _report(state, leaks)


@contextmanager
def _open(
    scene: Scene, watch: ProcessWatch, *, minutes: float, seed: int, steps: int, every_s: float
) -> Iterator[Soak]:
    with (
        two_nodes(with_token(scene)) as nodes,
        tracking_server(scene.folder / "mlflow") as tracking,
    ):
        draw = random.Random(seed)  # noqa: S311  no secret
        yield Soak(
            folder=scene.folder,
            scene=replace(scene, environment=nodes.environment),
            steps=steps,
            end_s=watch.started_s + 60 * minutes,
            nodes=nodes,
            tracking=tracking,
            draw=draw,
            faults=schedule_faults(draw, every_s=every_s),
            watch=watch,
        )


def _list_temporary(folder: Path) -> set[str]:
    names = {path.name for path in folder.iterdir()}
    return {name for name in names if not name.startswith(_CACHES)}


def _wait_for_end(job: Command) -> None:
    """Wait for the end of a job that may train for long.

    Raises:
        DrillError: it prints nothing any more.
    """
    while job.process.poll() is None:
        if job.lines and time.monotonic() - job.lines[-1].at_s > TIMEOUT_S:
            raise DrillError(f"the job stands still:\n{job.tail}")
        time.sleep(0.2)


def _report(state: Soak, leaks: Sequence[str]) -> dict[str, Any]:
    growth = measure_growth(state.watch.samples)
    _log.info("\n%s", "\n".join(format_table(_growth_rows(growth))))
    _log.info("\n%s", "\n".join(format_table(_fault_rows(state.injected))))
    problems = [
        *state.problems,
        *(f"left behind: {each}" for each in leaks),
        *(
            f"{each.kind} grows by {each.mb_per_hour:.0f} MB/h"
            for each in growth
            if each.verdict == "GROWS"
        ),
    ]
    if problems:
        raise DrillError("\n".join(problems))
    faults = format_count(len(state.injected), "fault")
    _log.info(
        "%s, %s: nothing lost, left behind or growing", format_count(state.runs, "run"), faults
    )
    return {
        "minutes": round(state.minute, 1),
        "runs": state.runs,
        "faults": len(state.injected),
        "growth": [each._asdict() for each in growth],
    }


def _growth_rows(growth: Sequence[Growth]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        ("process", "seen", "longest, min", "MB first", "last", "MB/h", "files/h", "memory")
    ]
    for each in sorted(growth):
        slopes = (
            "-" if x is None else f"{x:+.1f}" for x in (each.mb_per_hour, each.files_per_hour)
        )
        memory = (f"{each.first_mb:.0f}", f"{each.last_mb:.0f}")
        counts = (str(each.processes), f"{each.longest_min:.0f}")
        rows.append((each.kind, *counts, *memory, *slopes, each.verdict))
    return rows


def _fault_rows(injected: Sequence[tuple[float, str, float]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("fault", "times", "s to the next line: least", "most")]
    for name in SOAK_FAULTS:
        seconds = [each for _, fault, each in injected if fault == name]
        if seconds:
            rows.append((name, str(len(seconds)), f"{min(seconds):.0f}", f"{max(seconds):.0f}"))
    return rows
