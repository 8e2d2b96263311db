"""Too little memory on a node: Ray kills its processes, the newest first."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.drill.cluster_faults import CONTINUES
from pipeline.drill.command import Command, Line
from pipeline.drill.process_faults import AFTER_SAVED
from pipeline.drill.scene import STEP, Outcome, Scene, read_result, resume, seconds_to_next_step
from pipeline.drill.small_memory import SmallMemory, small_memory
from pipeline.errors import DrillError

_LIMIT_MB = 6000
_ENDS = "^TrainingError: .* out of memory"
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
