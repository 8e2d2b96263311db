"""The small run that every drill disturbs: drawn shapes, a tiny Mask R-CNN, and its reference."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from bsm.configs.instance import BoxHeadConfig, MaskHeadConfig, MaskRCNNConfig, ProposalConfig
from bsm.configs.shared import FpnBackboneConfig
from pipeline import storage
from pipeline.data.ingest import CocoIngest, ingest_dataset
from pipeline.data.manifest import read_manifest
from pipeline.data.sources.shapes import write_shapes
from pipeline.drill.command import Command
from pipeline.errors import DrillError
from pipeline.recipe import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    OptimConfig,
    Recipe,
    ScaleConfig,
    TrackingConfig,
    to_json,
)

STEPS, CHECKPOINT_EVERY, GLOBAL_BATCH, TRAIN_IMAGES = 40, 10, 4, 44
"""With 44 images, an epoch ends at step 11."""

LONG_STEPS, LONG_IMAGES = 100, 100
"""Of a run that reads its shards again and again: an epoch has more images than it reads ahead."""

STEP = r"^step {step}/"
"""Pattern of the progress line of a step."""


class Outcome(NamedTuple):
    """The course of a fault, for the table."""

    saw: str
    """The line that tells the user."""
    seconds_lost: float | None
    """From the fault to the next step; None if the run did not stop training."""
    result: dict[str, Any]
    """RESULT of the run that finished in the end."""
    workers: int | None = 0
    """Of the run without a fault whose weights it must have, bit for bit; None if their number has
    changed. Sums over other numbers of workers round differently."""
    is_long: bool = False
    """Whether it was the long run."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The place of a fault, with a run of its own."""

    name: str
    folder: Path
    shards: str
    long_shards: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    def long_recipe(self, *, workers: int = 0, shards: str = "") -> Recipe:
        """Return the recipe of a long run on a folder of shards."""
        recipe = self.recipe(workers=workers, shards=shards or self.long_shards)
        return replace(recipe, optim=replace(recipe.optim, steps=LONG_STEPS))

    def recipe(self, *, workers: int = 0, storage_uri: str = "", shards: str = "") -> Recipe:
        """Return the recipe of this fault's run."""
        return tiny_recipe(
            shards or self.shards,
            storage_uri or str(self.folder / "runs"),
            name=self.name,
            num_workers=workers,
        )

    @contextmanager
    def train(self, recipe: Recipe, *flags: str) -> Iterator[Command]:
        """Start the job that trains a recipe, as a user does; kill it at the end of the block."""
        with self.run(*self.training_command(recipe, *flags)) as command:
            yield command

    @contextmanager
    def run(self, *arguments: str) -> Iterator[Command]:
        """Start Python with arguments; kill it at the end of the block."""
        command = Command((sys.executable, "-u", *arguments), self.environment)
        try:
            yield command
        finally:
            command.kill()

    def training_command(self, recipe: Recipe, *flags: str) -> list[str]:
        """Return the arguments of Python that train a recipe."""
        file = self.folder / "recipe.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(to_json(recipe))
        return ["-m", "jobs.train", str(file), *flags]

    def finish(self, recipe: Recipe, *flags: str) -> tuple[Command, dict[str, Any]]:
        """Run the job to its end; return it with its RESULT."""
        with self.train(recipe, *flags) as job:
            return job, read_result(job)


def resume(scene: Scene, recipe: Recipe, saw: str, fault_s: float, *flags: str) -> Outcome:
    """Run the same command again, to the end."""
    job, result = scene.finish(recipe, *flags)
    return Outcome(saw, seconds_to_next_step(job, fault_s), result, recipe.scale.num_workers)


def copy_results(scene: Scene, outcome: Outcome) -> Outcome:
    """Copy what the drill compares, before the storage of the run is gone."""
    kept = scene.folder / "kept"
    kept.mkdir()
    copies = {}
    for name in ("samples", "weights"):
        file = kept / name
        file.write_bytes(storage.read_bytes(outcome.result[name]))
        copies[name] = str(file)
    return outcome._replace(result=outcome.result | copies)


def expect_exit(job: Command, code: int) -> None:
    """Wait for the end of a job.

    Raises:
        DrillError: its exit code is another.
    """
    if (found := job.wait()) != code:
        raise DrillError(f"the job ended with exit code {found}, expected {code}:\n{job.tail}")


def read_result(job: Command) -> dict[str, Any]:
    """Wait for the end of a job, and return its RESULT.

    Raises:
        DrillError: it failed.
    """
    code = job.wait()
    line = job.find(r"^RESULT ")
    if code or line is None:
        raise DrillError(f"the job ended with exit code {code}:\n{job.tail}")
    result: dict[str, Any] = json.loads(line.text.removeprefix("RESULT "))
    return result


def seconds_to_next_step(job: Command, fault_s: float, *, after: int = -1) -> float:
    """Return the seconds from a fault to the next progress line of a job."""
    return job.wait_for(STEP.format(step=r"\d+"), after=after).at_s - fault_s


def write_shards(folder: Path, *, train_images: int = TRAIN_IMAGES) -> str:
    """Draw and ingest the images of drills; return the folder of their shards."""
    photos = folder / "photos"
    write_shapes(photos, train_images=train_images, val_images=4)
    for split in ("train", "val"):
        out = str(folder / "shards" / split)
        ingest_dataset(
            CocoIngest(root=str(photos), split=split, out=out, workers=0, rows_per_shard=32)
        )
    return str(folder / "shards")


def tiny_recipe(
    shards: Path | str, storage_uri: Path | str, *, name: str, num_workers: int
) -> Recipe:
    """Return the recipe of a Mask R-CNN that trains a step in a tenth of a second."""
    categories = read_manifest(f"{shards}/train").categories
    return Recipe(
        name=name,
        storage=str(storage_uri),
        model=MaskRCNNConfig(
            num_classes=len(categories),
            backbone=FpnBackboneConfig(name="resnet18", norm="group", freeze_at=0, fpn_channels=16),
            proposals=ProposalConfig(
                anchor_sizes_px=(8.0, 16.0, 32.0, 64.0, 128.0),
                top_k_before_nms_train=50,
                top_k_before_nms_test=50,
                top_k_after_nms=20,
                samples_per_image=32,
            ),
            box_head=BoxHeadConfig(hidden=32, samples_per_image=16, detections_per_image=5),
            mask_head=MaskHeadConfig(channels=16, num_convs=1),
        ),
        data=DataConfig(
            root=str(shards),
            train_split="train",
            val_split="val",
            short_edge_px=(48, 64),
            test_short_edge_px=64,
            long_edge_px=96,
        ),
        optim=OptimConfig(
            global_batch=GLOBAL_BATCH,
            lr_per_image=0.001,
            steps=STEPS,
            warmup_steps=4,
            decay_at=(),
        ),
        scale=ScaleConfig(
            num_workers=num_workers,
            cpus_per_worker=0.5,
            images_per_microbatch=1,
            threads_per_worker=1,
        ),
        checkpoint=CheckpointConfig(every_steps=CHECKPOINT_EVERY, keep=3),
        tracking=TrackingConfig(log_every=1),
        evaluation=EvaluationConfig(max_images=4),
    )
