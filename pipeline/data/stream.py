"""Batches for a trainer, step by step, with or without Ray: the same tensors either way.

`local_batches` reads in this process. With Ray Train the driver makes `ray_chapters` and each
worker draws `worker_batches` from them. Both run the items of one plan (pipeline/data/plan.py) and
collate in background threads; where an image is decoded (DataConfig.decode_in) changes no pixel.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import torch

from pipeline.data import collate_semantic
from pipeline.data.batch import Batch
from pipeline.data.collate import collate
from pipeline.data.manifest import read_manifest
from pipeline.data.plan import Chapter
from pipeline.data.prefetch import ahead
from pipeline.data.read_rows import plan_of, read_item, rows_per_item, train_columns
from pipeline.errors import TrainingError
from pipeline.recipe import DataConfig

if TYPE_CHECKING:
    import ray.data
    import ray.train

_MOST_THREADS = 4


@dataclass(frozen=True, slots=True)
class StepBatch:
    """What one worker trains in one optimizer step."""

    step: int
    epoch: int
    """How many epochs have been trained when the step starts."""
    passes: tuple[Batch, ...]
    """The worker's part of the global batch, by lane, a few images at a time."""


def local_batches(
    split_uri: str,
    data: DataConfig,
    *,
    seed: int,
    global_batch: int,
    images_per_microbatch: int,
    first_step: int,
    stop_step: int,
    with_masks: bool = False,
) -> Iterator[StepBatch]:
    """Yield whole global batches of steps first_step to stop_step - 1, read in this process.

    Closing the iterator ends its threads.

    Args:
        split_uri: folder of shards.
        data: how an image is prepared.
        seed: the recipe's.
        global_batch: images of a step.
        images_per_microbatch: images of one forward pass.
        first_step: where to begin; may lie anywhere.
        stop_step: the first step that is not wanted.
        with_masks: decode masks of instances too, for targets made on each RoI's own mask.

    Raises:
        DatasetError: the shards are missing or damaged, or an image cannot be decoded.
    """
    manifest = read_manifest(split_uri)
    files = tuple(shard.file for shard in manifest.shards)
    plan = plan_of(
        split_uri,
        manifest,
        seed=seed,
        global_batch=global_batch,
        repeat_threshold=data.repeat_threshold,
    )
    items = plan.items(first_step, stop_step, rows_per_item=rows_per_item(manifest))
    columns = train_columns(manifest.task, with_masks=with_masks)
    tables = (read_item(item, split_uri=split_uri, files=files, columns=columns) for item in items)
    steps = _steps(
        tables,
        Chapter("of this process", first_step, stop_step, 1),
        first_step,
        lanes=range(global_batch),
    )
    make = _maker(
        data, seed=seed, images_per_microbatch=images_per_microbatch, with_masks=with_masks
    )
    return _prepared(steps, make, data)


def ray_chapters(
    split_uri: str,
    data: DataConfig,
    *,
    seed: int,
    global_batch: int,
    chapters: tuple[Chapter, ...],
    with_masks: bool = False,
) -> tuple[dict[str, "ray.data.Dataset"], "ray.train.DataConfig"]:
    """Make what TorchTrainer takes as `datasets` and `dataset_config`; call it in the driver.

    Args:
        split_uri: folder of shards, readable from every node.
        data: how an image is prepared, and where.
        seed: the recipe's.
        global_batch: images of a step.
        chapters: all of the run's, from plan.chapters.
        with_masks: carry masks too.

    Raises:
        DatasetError: the folder is not complete or holds no rows.
    """
    from pipeline.data import ray_chapters as ray_side  # noqa: PLC0415  imports Ray

    return ray_side.make_chapters(
        split_uri,
        data,
        seed=seed,
        global_batch=global_batch,
        chapters=chapters,
        with_masks=with_masks,
    )


def worker_batches(  # noqa: PLR0913  the arguments of a run, all by name
    chapter: Chapter,
    data: DataConfig,
    *,
    rank: int,
    world_size: int,
    seed: int,
    global_batch: int,
    images_per_microbatch: int,
    first_step: int = 0,
    with_masks: bool = False,
) -> Iterator[StepBatch]:
    """Yield this worker's part of each step of a chapter, inside a Ray Train worker.

    All workers must draw the same chapter at the same time and to its end.

    Args:
        chapter: one of those given to ray_chapters.
        data: the same as there.
        rank: this worker's.
        world_size: number of workers.
        seed: the recipe's.
        global_batch: images of a step, over all workers.
        images_per_microbatch: images of one forward pass.
        first_step: where to begin; the same on all workers. Steps between the chapter's last entry
            and it are read, but not decoded here.
        with_masks: the same as in ray_chapters.

    Raises:
        TrainingError: a row of another worker's lane arrived, or a step is missing or comes twice.
    """
    from pipeline.data import ray_chapters as ray_side  # noqa: PLC0415  imports Ray

    chapter = chapter.entered(first_step)
    steps = _steps(
        ray_side.tables(ray_side.worker_shard(chapter)),
        chapter,
        first_step,
        lanes=range(rank, global_batch, world_size),
    )
    make = _maker(
        data, seed=seed, images_per_microbatch=images_per_microbatch, with_masks=with_masks
    )
    return _prepared(steps, make, data)


def _prepared(
    steps: Generator[tuple[int, pa.Table], None, None],
    make: Callable[[tuple[int, pa.Table]], StepBatch],
    data: DataConfig,
) -> Iterator[StepBatch]:
    threads = min(data.prefetch_batches, _MOST_THREADS)
    return ahead(steps, make, most=data.prefetch_batches, threads=threads)


def _maker(
    data: DataConfig, *, seed: int, images_per_microbatch: int, with_masks: bool
) -> Callable[[tuple[int, pa.Table]], StepBatch]:
    pin = torch.cuda.is_available()

    def collated(rows: pa.Table) -> Batch:
        if "label" in rows.column_names:
            return collate_semantic.collate(rows, data, seed=seed)
        return collate(rows, data, seed=seed, with_masks=with_masks)

    def make(found: tuple[int, pa.Table]) -> StepBatch:
        step, rows = found
        passes = [
            collated(rows.slice(first, images_per_microbatch))
            for first in range(0, len(rows), images_per_microbatch)
        ]
        return StepBatch(
            step=step,
            epoch=rows["step_epoch"][0].as_py(),
            passes=tuple(batch.pinned() if pin else batch for batch in passes),
        )

    return make


def _steps(
    tables: Iterable[pa.Table], chapter: Chapter, first_step: int, *, lanes: range
) -> Generator[tuple[int, pa.Table], None, None]:
    """Cut tables into steps and hold them to the plan: each step once, in order, own lanes only."""
    due = chapter.first_step
    for table in tables:
        step, lane = table["step"].to_numpy(), table["lane"].to_numpy()
        for first in range(0, len(table), len(lanes)):
            here = slice(first, first + len(lanes))
            if set(step[here].tolist()) != {due} or due >= chapter.stop_step:
                wanted = f"step {due}" if due < chapter.stop_step else "no more"
                found = ", ".join(map(str, dict.fromkeys(step[here].tolist())))
                raise _off_plan(chapter, f"step {found} arrived where {wanted} is due")
            if lane[here].tolist() != list(lanes):
                raise _off_plan(
                    chapter,
                    f"for step {due}, rows of the lanes {lane[here].tolist()} of the global batch "
                    f"arrived at the worker that owns {list(lanes)}",
                )
            if due >= first_step:
                yield due, table.slice(first, len(lanes))
            due += 1
    if due != chapter.stop_step:
        raise _off_plan(
            chapter, f"the data ended before step {due}, it must go to step {chapter.stop_step - 1}"
        )


def _off_plan(chapter: Chapter, what: str) -> TrainingError:
    return TrainingError(
        f"the stream of data left its plan in chapter {chapter.name}: {what}. "
        "No step was trained on it; start the run again under the same name to go on"
    )
