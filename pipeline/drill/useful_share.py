"""The share of time in which a run with failures makes progress: computed, and measured.

Failures come at random, at a constant rate. A run loses the work since its last checkpoint, and the
time of a restart.
"""

import logging
import math
import os
import random
import re
import signal
import statistics
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipeline.drill.command import Command
from pipeline.drill.scene import STEP, Scene, write_shards
from pipeline.text import format_markdown

_log = logging.getLogger(__name__)

_ANY_STEP = STEP.format(step=r"\d+")
_WARM_STEPS = 3
"""Steps at the start of a process that are slower than the others."""


def compute_useful_share(
    *, checkpoint_every_s: float, checkpoint_s: float, restart_s: float, failure_every_s: float
) -> float:
    """Return the share of time that becomes progress, from 0 to 1.

    With T seconds of work between two checkpoints, C to write one, R for a restart and a failure
    every M seconds: T / (M exp(R / M) (exp((T + C) / M) - 1)). Source: Daly, A higher order
    estimate of the optimum checkpoint interval for restart dumps (2006).

    Args:
        checkpoint_every_s: T.
        checkpoint_s: C; 0 if checkpoints are written beside the training.
        restart_s: R, from a failure to the next step.
        failure_every_s: M.
    """
    attempt = math.expm1((checkpoint_every_s + checkpoint_s) / failure_every_s)
    return checkpoint_every_s / (failure_every_s * math.exp(restart_s / failure_every_s) * attempt)


def measure_useful_share(*, steps: int, failure_every_s: float, seed: int = 0) -> dict[str, Any]:
    """Kill a small run at random until it is finished, and compare its time with the formula.

    Args:
        steps: of the run.
        failure_every_s: mean of the times between two failures.
        seed: of these times.
    """
    with tempfile.TemporaryDirectory(prefix="drill-") as folder:
        return _measure(Path(folder), steps, failure_every_s, random.Random(seed))  # noqa: S311


def _measure(
    folder: Path, steps: int, failure_every_s: float, draw: random.Random
) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    scene = Scene(
        name="broken", folder=folder, shards=write_shards(folder), environment=environment
    )
    recipe = scene.recipe()
    recipe = replace(recipe, optim=replace(recipe.optim, steps=steps))
    restarts: list[float] = []
    step_times: list[float] = []
    started_s = time.monotonic()
    is_done, failures = False, 0
    while not is_done:
        with scene.train(recipe) as job:
            is_done = _wait_or_kill(job, steps, limit_s=draw.expovariate(1 / failure_every_s))
            times = [line.at_s for line in job.lines if re.match(_ANY_STEP, line.text)]
            restarts += [at_s - job.started_s for at_s in times[:1]]
            step_times += [b - a for a, b in pairwise(times[_WARM_STEPS:])]
            failures += not is_done
            _log.info("%d failures so far, %d steps seen", failures, len(times))
    total_s = time.monotonic() - started_s
    step_s, restart_s = statistics.mean(step_times), statistics.mean(restarts)
    computed = compute_useful_share(
        checkpoint_every_s=recipe.checkpoint.every_steps * step_s,
        checkpoint_s=0,
        restart_s=restart_s,
        failure_every_s=failure_every_s,
    )
    measured = steps * step_s / total_s
    rows = [("failures", "s per step", "s per restart", "useful share", "by the formula")]
    numbers = (f"{step_s:.3f}", f"{restart_s:.1f}", f"{measured:.3f}", f"{computed:.3f}")
    rows.append((str(failures), *numbers))
    _log.info("%s", format_markdown(rows))
    return {
        "failures": failures,
        "step_s": step_s,
        "restart_s": restart_s,
        "measured": measured,
        "computed": computed,
    }


def _wait_or_kill(job: Command, steps: int, *, limit_s: float) -> bool:
    """Wait for the last step, and kill the job after a time; return whether it got there."""
    while job.find(STEP.format(step=steps)) is None:
        if time.monotonic() - job.started_s > limit_s:
            job.send(signal.SIGKILL)
            return False
        time.sleep(0.02)
    return True
