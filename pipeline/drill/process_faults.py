"""Faults of one training process and of its files, without Ray."""

import signal
import subprocess
import sys
from dataclasses import replace

from pipeline.drill.scene import (
    CHECKPOINT_EVERY,
    STEP,
    Outcome,
    Scene,
    expect_exit,
    read_result,
    resume,
    seconds_to_next_step,
)
from pipeline.errors import DrillError
from pipeline.recipe import Recipe

SAVED = 2 * CHECKPOINT_EVERY
AFTER_SAVED = STEP.format(step=SAVED + 3)

_OTHER_MACHINE = """
import sys, time
from dataclasses import replace
from pipeline.training import run_lock
now, describe = time.time, run_lock._describe_this_process
time.time = lambda: now() + float(sys.argv[2])
run_lock._describe_this_process = lambda: replace(describe(), machine="another", host="node-7")
with run_lock.hold_run(sys.argv[1]):
    print("holds the run", flush=True)
    sys.stdin.read()
"""


def terminate(scene: Scene) -> Outcome:
    """Write a checkpoint of the last step, and leave."""
    recipe = scene.recipe()
    with scene.train(recipe) as job:
        job.wait_for(AFTER_SAVED)
        fault_s = job.send(signal.SIGTERM)
        saw = job.wait_for(r"stopped by SIGTERM at step \d+").text
        expect_exit(job, 143)
    return resume(scene, recipe, saw, fault_s)


def kill_driver(scene: Scene) -> Outcome:
    """Go on from the last checkpoint, by the same command."""
    recipe = scene.recipe()
    fault_s = kill_after_checkpoint(scene, recipe)
    job, result = scene.finish(recipe)
    saw = job.wait_for("^taking over ").text
    return Outcome(saw, seconds_to_next_step(job, fault_s), result)


def start_twice(scene: Scene) -> Outcome:
    """Refuse the second job of a name; the first does not notice."""
    recipe = scene.recipe()
    with scene.train(recipe) as first:
        first.wait_for(STEP.format(step=1))
        with scene.train(recipe) as second:
            saw = second.wait_for("is held by ").text
            expect_exit(second, 2)
        return Outcome(saw, None, read_result(first))


def skew_clock(scene: Scene) -> Outcome:
    """Count the holder of a run as alive, whatever its clock says."""
    recipe = scene.recipe()
    run = str(scene.folder / "runs" / scene.name)
    saw = ""
    for seconds in ("600", "-600"):
        with subprocess.Popen(
            [sys.executable, "-c", _OTHER_MACHINE, run, seconds],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=scene.environment,
            text=True,
        ) as holder:
            assert holder.stdout is not None
            assert holder.stdin is not None
            if holder.stdout.readline() != "holds the run\n":
                raise DrillError("the other machine does not hold the run")
            with scene.train(recipe) as job:
                saw = job.wait_for("is held by node-7").text
                expect_exit(job, 2)
            holder.stdin.close()
    _, result = scene.finish(recipe)
    return Outcome(saw, None, result)


def make_loss_infinite(scene: Scene) -> Outcome:
    """Keep what is needed to repeat the bad step, and stop before the weights are lost."""
    recipe = scene.recipe()
    wild = replace(recipe, optim=replace(recipe.optim, lr_per_image=1e9))
    with scene.train(replace(wild, name=f"{scene.name}-wild")) as job:
        bad = job.wait_for("not finite")
        if job.wait() == 0:
            raise DrillError(f"the job did not fail:\n{job.tail}")
    run = scene.folder / "runs" / f"{scene.name}-wild"
    with scene.run("-m", "jobs.replay", str(run)) as replay:
        expect_exit(replay, 0)
    _, result = scene.finish(recipe)
    return Outcome(bad.text, None, result)


def kill_after_checkpoint(scene: Scene, recipe: Recipe) -> float:
    """Start the job, kill it a few steps after its second checkpoint, and return the time."""
    with scene.train(recipe) as job:
        job.wait_for(AFTER_SAVED)
        return job.send(signal.SIGKILL)
