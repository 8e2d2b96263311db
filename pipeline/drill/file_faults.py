"""Faults of the files of a run: checkpoints, shards, and disks that are full."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree

from pipeline.drill.process_faults import AFTER_SAVED, SAVED, kill_after_checkpoint
from pipeline.drill.scene import (
    CHECKPOINT_EVERY,
    Outcome,
    Scene,
    copy_results,
    resume,
    seconds_to_next_step,
)
from pipeline.drill.small_disk import fill, small_disk
from pipeline.errors import DrillError


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
    return _damage_shard(scene, _move_away)


def truncate_shard(scene: Scene) -> Outcome:
    """Name the shard that was cut in half, and go on once it is whole."""
    return _damage_shard(scene, _cut)


def delete_shard_while_read(scene: Scene) -> Outcome:
    """Name a shard that is deleted while the run trains, and go on once it is back."""
    return _damage_shard_while_read(scene, _move_away)


def truncate_shard_while_read(scene: Scene) -> Outcome:
    """Name a shard that is cut in half while the run trains, and go on once it is whole."""
    return _damage_shard_while_read(scene, _cut)


def fill_disk(scene: Scene) -> Outcome:
    """Say that the disk is full, and go on once it is not."""
    recipe = scene.recipe()
    disk = scene.folder / "runs"
    with small_disk(disk):
        filler = disk / "filler"
        with scene.train(recipe) as job:
            job.wait_for(AFTER_SAVED)
            fill(filler)
            fault_s = time.monotonic()
            saw = job.wait_for("(?i)no space left on device").text
            if job.wait() == 0:
                raise DrillError(f"the job did not fail:\n{job.tail}")
        filler.unlink()
        outcome = resume(scene, recipe, saw, fault_s)
        # The disk is gone at the end of the block.
        return copy_results(scene, outcome)


def fill_temporary_disk(scene: Scene) -> Outcome:
    """Say that the disk for temporary files is full, and go on once it is not."""
    disk = scene.folder / "tmp"
    with small_disk(disk):
        here = replace(scene, environment=scene.environment | {"TMPDIR": str(disk)})
        recipe = here.recipe()
        filler = disk / "filler"
        with here.train(recipe) as job:
            job.wait_for(AFTER_SAVED)
            fill(filler)
            saw = job.wait_for("^StorageError: .*no space left on device").text
            if job.wait() == 0:
                raise DrillError(f"the job did not fail:\n{job.tail}")
        filler.unlink()
        _, result = here.finish(recipe)
        return Outcome(saw, None, result)


def _damage_checkpoint(scene: Scene, damage: Callable[[bytes], bytes]) -> Outcome:
    recipe = scene.recipe()
    fault_s = kill_after_checkpoint(scene, recipe)
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
    fault_s = kill_after_checkpoint(scene, recipe)
    damage(shard)
    with scene.train(recipe) as job:
        saw = job.wait_for(shard.name).text.strip()
        if job.wait() == 0:
            raise DrillError(f"the job did not fail:\n{job.tail}")
    shard.with_suffix(".gone").replace(shard)
    return resume(scene, recipe, saw, fault_s)


def _damage_shard_while_read(scene: Scene, damage: Callable[[Path], object]) -> Outcome:
    """Damage a shard that the next epoch reads again at the latest."""
    shards = scene.folder / "shards"
    copytree(scene.long_shards, shards)
    recipe = scene.long_recipe(shards=str(shards))
    shard = sorted((shards / "train").glob("*.parquet"))[0]
    with scene.train(recipe) as job:
        job.wait_for(AFTER_SAVED)
        fault_s = time.monotonic()
        damage(shard)
        saw = job.wait_for(shard.name).text.strip()
        if job.wait() == 0:
            raise DrillError(f"the job did not fail:\n{job.tail}")
    shard.with_suffix(".gone").replace(shard)
    return resume(scene, recipe, saw, fault_s)._replace(is_long=True)


def _move_away(path: Path) -> None:
    path.rename(path.with_suffix(".gone"))


def _cut(path: Path) -> None:
    data = path.read_bytes()
    _move_away(path)
    path.write_bytes(data[: len(data) // 2])
