"""Faults of one training process and of its files, without Ray."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from shutil import copytree

from pipeline.drill.scene import (
    CHECKPOINT_EVERY,
    STEP,
    Outcome,
    Scene,
    copy_results,
    expect_exit,
    read_result,
    resume,
    seconds_to_next_step,
)
from pipeline.errors import DrillError, DrillSkippedError
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
    fault_s = _kill_after_checkpoint(scene, recipe)
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


def truncate_checkpoint(scene: Scene) -> Outcome:
    """Use the checkpoint before the one that was cut in half."""
    return _damage_checkpoint(scene, lambda data: data[: len(data) // 2])


def flip_checkpoint_byte(scene: Scene) -> Outcome:
    """Use the checkpoint before the one in which a byte has changed."""

    def flip(data: bytes) -> bytes:
        at = len(data) // 2
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    return _damage_checkpoint(scene, flip)


def delete_shard(scene: Scene) -> Outcome:
    """Name the shard that was deleted, and go on once it is back."""
    return _damage_shard(scene, lambda path: path.rename(path.with_suffix(".gone")))


def truncate_shard(scene: Scene) -> Outcome:
    """Name the shard that was cut in half, and go on once it is whole."""

    def cut(path: Path) -> None:
        data = path.read_bytes()
        path.rename(path.with_suffix(".gone"))
        path.write_bytes(data[: len(data) // 2])

    return _damage_shard(scene, cut)


def fill_disk(scene: Scene) -> Outcome:
    """Say that the disk is full, and go on once it is not."""
    recipe = scene.recipe()
    disk = scene.folder / "runs"
    with _small_disk(disk):
        filler = disk / "filler"
        with scene.train(recipe) as job:
            job.wait_for(AFTER_SAVED)
            _fill(filler)
            fault_s = time.monotonic()
            saw = job.wait_for("(?i)no space left on device").text
            if job.wait() == 0:
                raise DrillError(f"the job did not fail:\n{job.tail}")
        filler.unlink()
        outcome = resume(scene, recipe, saw, fault_s)
        # The disk is gone at the end of the block.
        return copy_results(scene, outcome)


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


def _kill_after_checkpoint(scene: Scene, recipe: Recipe) -> float:
    with scene.train(recipe) as job:
        job.wait_for(AFTER_SAVED)
        return job.send(signal.SIGKILL)


def _damage_checkpoint(scene: Scene, damage: Callable[[bytes], bytes]) -> Outcome:
    recipe = scene.recipe()
    fault_s = _kill_after_checkpoint(scene, recipe)
    run = scene.folder / "runs" / scene.name
    newest = run / "checkpoints" / f"step-{SAVED:08d}" / "checkpoint.pt"
    newest.write_bytes(damage(newest.read_bytes()))
    job, result = scene.finish(recipe)
    saw = job.wait_for(f"passed over .*step-{SAVED:08d}").text
    job.wait_for(rf"resuming from step {SAVED - CHECKPOINT_EVERY}\b")
    return Outcome(saw, seconds_to_next_step(job, fault_s), result)


def _damage_shard(scene: Scene, damage: Callable[[Path], object]) -> Outcome:
    """Damage a shard between two starts: a run of so few images has read them all at once."""
    shards = scene.folder / "shards"
    copytree(scene.shards, shards)
    recipe = scene.recipe(shards=str(shards))
    shard = sorted((shards / "train").glob("*.parquet"))[0]
    fault_s = _kill_after_checkpoint(scene, recipe)
    damage(shard)
    with scene.train(recipe) as job:
        saw = job.wait_for(shard.name).text.strip()
        if job.wait() == 0:
            raise DrillError(f"the job did not fail:\n{job.tail}")
    shard.with_suffix(".gone").replace(shard)
    return resume(scene, recipe, saw, fault_s)


@contextmanager
def _small_disk(folder: Path) -> Iterator[None]:
    """Mount a disk with place for a few checkpoints."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=800m", "tmpfs", str(folder)]
    if os.getuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        raise DrillSkippedError("only root can mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _fill(filler: Path) -> None:
    block = bytes(2**20)
    with filler.open("wb", buffering=0) as stream:
        while True:
            try:
                stream.write(block)
            except OSError:
                if len(block) == 1:
                    return
                block = b"\0"
