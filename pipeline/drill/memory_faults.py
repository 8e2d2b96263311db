"""Too little memory: Ray kills a training worker, or a task that reads data."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from pipeline.drill.cluster_faults import CONTINUES
from pipeline.drill.command import TIMEOUT_S, Command, Line
from pipeline.drill.process_faults import AFTER_SAVED
from pipeline.drill.scene import STEP, Outcome, Scene, read_result, resume, seconds_to_next_step
from pipeline.drill.small_memory import SmallMemory, small_memory
from pipeline.errors import DrillError

_LIMIT_MB = 6000
_ENDS = "^TrainingError: .* out of memory"
_STALL_S = 15.0
"""Without a line for this long, the run waits for data."""
_ALMOST, _FULL = 0.88, 0.99
"""Ray kills at 0.95; the kernel, which would kill the largest process, at 1."""


def exhaust_worker_memory(scene: Scene) -> Outcome:
    """Go on from the last checkpoint when Ray kills processes because their node has no memory."""
    with _train_in_container(scene) as (memory, job):
        with memory.filler() as filler:
            job.wait_for(STEP.format(step=1))
            filler.fill(_ALMOST)
            job.wait_for(AFTER_SAVED)
            fault_s = time.monotonic()
            filler.fill(_FULL)
            lost = job.wait_for(CONTINUES)
        return _go_on(scene, job, lost, fault_s)


def exhaust_task_memory(scene: Scene) -> Outcome:
    """Repeat a task that reads data when Ray kills it because its node has no memory."""
    with _train_in_container(scene) as (memory, job):
        with memory.filler() as filler:
            job.wait_for(STEP.format(step=1))
            filler.fill(_ALMOST)
            idle = _stop_next_task(job)
            fault_s, after = time.monotonic(), job.lines[-1].number
            filler.fill(_FULL)
            gone = _wait_for_any(idle)
        for process in idle:
            with suppress(psutil.NoSuchProcess):
                process.resume()
        if not gone:
            raise DrillError(f"Ray killed no process of Ray Data:\n{job.tail}")
        return _go_on(scene, job, job.lines[after], fault_s)


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


@contextmanager
def _train_in_container(scene: Scene) -> Iterator[tuple[SmallMemory, Command]]:
    recipe = scene.recipe(workers=2)
    with small_memory(_LIMIT_MB) as memory:
        words = [*memory.enter, sys.executable, "-u", *scene.training_command(recipe)]
        job = Command(words, scene.environment)
        try:
            yield memory, job
        finally:
            job.kill()


def _stop_next_task(job: Command) -> list[psutil.Process]:
    """Stop the processes that wait for a task, and wait until training stands still without it.

    A task that reads data takes milliseconds, too few to find it while it runs.
    """
    stopped: dict[int, psutil.Process] = {}
    while job.process.poll() is None and time.monotonic() < job.lines[-1].at_s + _STALL_S:
        for process in psutil.Process(job.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if process.pid not in stopped and process.name() == "ray::IDLE":
                    process.suspend()
                    stopped[process.pid] = process
        time.sleep(0.1)
    if job.process.poll() is not None:
        raise DrillError(f"the run did not wait for its data:\n{job.tail}")
    return list(stopped.values())


def _wait_for_any(processes: list[psutil.Process]) -> bool:
    """Wait until one of several processes has ended; return whether one has."""
    end_s = time.monotonic() + TIMEOUT_S
    while all(map(psutil.pid_exists, (each.pid for each in processes))):
        if time.monotonic() > end_s:
            return False
        time.sleep(0.2)
    return True
