"""Too little memory on a node: Ray kills its processes, the newest first."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from ray._common.utils import get_default_ray_temp_dir

from pipeline.drill.cluster_faults import CONTINUES
from pipeline.drill.command import TIMEOUT_S, Command, Line
from pipeline.drill.process_faults import AFTER_SAVED
from pipeline.drill.scene import (
    STEP,
    Outcome,
    Scene,
    expect_exit,
    read_result,
    resume,
    seconds_to_next_step,
)
from pipeline.drill.small_memory import SmallMemory, small_memory
from pipeline.errors import DrillError

_LIMIT_MB = 6000
_ENDS = "^TrainingError: .* out of memory"
_BEFORE_RAY, _ALMOST, _FULL = 0.7, 0.88, 0.99
"""Ray kills at 0.95; the kernel, which would kill the largest process, at 1. Ray's own processes
take a tenth."""


def exhaust_worker_memory(scene: Scene) -> Outcome:
    """Go on from the last checkpoint when Ray kills processes because their node has no memory."""
    command = scene.training_command(scene.recipe(workers=2))
    with _run_in_container(scene, command) as (memory, job):
        with memory.filler() as filler:
            job.wait_for(STEP.format(step=1))
            filler.fill(_ALMOST)
            job.wait_for(AFTER_SAVED)
            fault_s = time.monotonic()
            filler.fill(_FULL)
            lost = job.wait_for(CONTINUES)
        return _go_on(scene, job, lost, fault_s)


def _go_on(scene: Scene, job: Command, last: Line, fault_s: float) -> Outcome:
    """Let the job go on; if Ray has killed what controls the run too, type its command again."""
    job.wait_for(f"{STEP.format(step='[0-9]+')}|{_ENDS}", after=last.number)
    if end := job.find(_ENDS, after=last.number):
        if job.wait() == 0:
            raise DrillError(f"the job did not fail:\n{job.tail}")
        return resume(scene, scene.recipe(workers=2), end.text, fault_s)
    seconds = seconds_to_next_step(job, fault_s, after=last.number)
    result = read_result(job)
    lost = job.find(CONTINUES)
    return Outcome(lost.text if lost else "nothing", seconds, result, workers=2)


def exhaust_data_memory(scene: Scene) -> Outcome:
    """Ingest every photo although Ray kills its tasks, as their node has no memory."""
    made, shards = Path(scene.shards), scene.folder / "shards"
    shutil.copytree(made / "val", shards / "val")
    flags = f"--split train --workers 1 --rows-per-shard 32 --out {shards / 'train'}"
    command = ["-m", "jobs.ingest", "coco", "--root", str(made.parent / "photos"), *flags.split()]
    saw = "nothing"
    with _run_in_container(scene, command) as (memory, job):
        with memory.filler() as filler:
            filler.fill(_BEFORE_RAY)
            _wait_until(job, lambda: _runs_task(job), otherwise="no task was started")
            filler.fill(_FULL)
            _wait_until(job, _has_killed, otherwise="Ray killed no task in a full memory")
        if job.wait():
            saw = job.wait_for("^[A-Za-z]*Error: ").text
            with scene.run(*command) as again:
                expect_exit(again, 0)
    _, result = scene.finish(scene.recipe(shards=str(shards)))
    return Outcome(saw, None, result)


def _runs_task(job: Command) -> bool:
    """Tell whether a task runs that ingests photos; it imports for some seconds first."""
    with suppress(psutil.NoSuchProcess):  # one that has just ended
        children = psutil.Process(job.process.pid).children(recursive=True)
        return any(each.name().startswith("ray::Map") for each in children)
    return False


def _has_killed() -> bool:
    """Tell whether the newest Ray of this machine has killed a process for its memory."""
    temporary: str = get_default_ray_temp_dir()  # type: ignore[no-untyped-call]
    log = Path(temporary, "session_latest", "logs", "raylet.out")
    return "OOM kill reason" in log.read_text(errors="replace")


def _wait_until(job: Command, holds: Callable[[], bool], *, otherwise: str) -> None:
    end_s = time.monotonic() + TIMEOUT_S
    while not holds():
        if job.process.poll() is not None or time.monotonic() > end_s:
            raise DrillError(f"{otherwise}:\n{job.tail}")
        time.sleep(0.05)


@contextmanager
def _run_in_container(
    scene: Scene, command: Sequence[str]
) -> Iterator[tuple[SmallMemory, Command]]:
    with small_memory(_LIMIT_MB) as memory:
        words = [*memory.enter, sys.executable, "-u", *command]
        job = Command(words, scene.environment)
        try:
            yield memory, job
        finally:
            job.kill()
