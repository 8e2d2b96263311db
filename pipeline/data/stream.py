"""Stream training batches step by step; the tensors are the same with and without Ray.

`local_batches` reads in this process. With Ray Train the driver calls `ray_chapters` and each
worker iterates over `worker_batches`. Both run the items of one plan (pipeline/data/plan.py) and
collate in background threads. DataConfig.decode_in moves the decoding but changes no pixel.
"""

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.batch import Batch
from pipeline.data.collate_steps import CollateSteps
from pipeline.data.manifest import read_manifest
from pipeline.data.plan import Chapter, extend_to_pairs
from pipeline.data.prefetch import prefetch
from pipeline.data.read_rows import make_plan, read_item, rows_per_item, train_columns
from pipeline.errors import TrainingError
from pipeline.recipe import DataConfig

if TYPE_CHECKING:
    import ray.data
    import ray.train

From = TypeVar("From")

_MAX_THREADS = 4


@dataclass(frozen=True, slots=True)
class StepBatch:
    """The batches of one worker in one optimizer step."""

    step: int
    epoch: int
    """Epochs completed when the step starts."""
    microbatches: tuple[Batch, ...]
    """The worker's share of the global batch, by lane."""


def local_batches(  # noqa: PLR0913  the arguments of a run, all by name
    split_uri: str,
    data: DataConfig,
    *,
    seed: int,
    global_batch: int,
    images_per_microbatch: int,
    first_step: int,
    stop_step: int,
    with_masks: bool = False,
    lanes: range | None = None,
) -> Iterator[StepBatch]:
    """Yield the global batches of steps first_step to stop_step - 1, read in this process.

    Closing the iterator stops its threads.

    Args:
        split_uri: folder of shards.
        data: the transforms.
        seed: of the recipe.
        global_batch: images per step.
        images_per_microbatch: images per forward pass.
        first_step: any step.
        stop_step: the step after the last one.
        with_masks: decode instance masks too, for targets from each RoI's own mask.
        lanes: yield only these lanes of the global batch, as one of several workers does.

    Raises:
        DatasetError: the shards are missing or damaged, or an image cannot be decoded.
    """
    manifest = read_manifest(split_uri)
    files = tuple(shard.file for shard in manifest.shards)
    plan = make_plan(
        split_uri,
        manifest,
        seed=seed,
        global_batch=global_batch,
        repeat_threshold=data.repeat_threshold,
        pairs=data.copy_paste > 0,
    )
    chapter = Chapter("local", first_step, stop_step, 1)
    items = plan.items(first_step, stop_step, rows_per_item=rows_per_item(manifest))
    columns = train_columns(manifest.task, with_masks=with_masks or data.edits_masks)
    tables = (read_item(item, split_uri=split_uri, files=files, columns=columns) for item in items)
    if lanes is not None:
        tables = (each.filter(pc.is_in(each["lane"], pa.array(lanes))) for each in tables)
    return _collate_steps(
        tables,
        chapter,
        data,
        first_step=first_step,
        lanes=lanes or range(global_batch),
        collate=CollateSteps(
            data, seed=seed, images_per_microbatch=images_per_microbatch, with_masks=with_masks
        ),
    )


def ray_chapters(
    split_uri: str,
    data: DataConfig,
    *,
    seed: int,
    global_batch: int,
    chapters: tuple[Chapter, ...],
    with_masks: bool = False,
) -> tuple[dict[str, "ray.data.Dataset"], "ray.train.DataConfig"]:
    """Make TorchTrainer's `datasets` and `dataset_config`, in the driver.

    Args:
        split_uri: folder of shards, readable from every node.
        data: the transforms, and where to decode.
        seed: of the recipe.
        global_batch: images per step.
        chapters: all chapters of the run, from plan.chapters.
        with_masks: read masks too.

    Raises:
        DatasetError: the folder is incomplete or has no rows.
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
    """Yield this worker's share of each step of a chapter, in a Ray Train worker.

    All workers must iterate over the same chapter at the same time, to its end.

    Args:
        chapter: one of those passed to ray_chapters.
        data: as passed to ray_chapters.
        rank: of this worker.
        world_size: number of workers.
        seed: of the recipe.
        global_batch: images per step, over all workers.
        images_per_microbatch: images per forward pass.
        first_step: any step, the same on all workers. Steps between the chapter's last entry before
            it and first_step are read and skipped.
        with_masks: as passed to ray_chapters.

    Raises:
        TrainingError: a row of another worker's lane arrived, or a step is missing or repeated.
    """
    from pipeline.data import ray_chapters as ray_side  # noqa: PLC0415  imports Ray

    chapter = chapter.resume_at(first_step)
    return _collate_steps(
        ray_side.tables(ray_side.worker_shard(chapter)),
        chapter,
        data,
        first_step=first_step,
        lanes=range(rank, global_batch, world_size),
        collate=CollateSteps(
            data, seed=seed, images_per_microbatch=images_per_microbatch, with_masks=with_masks
        ),
    )


def _collate_steps(
    tables: Iterable[pa.Table],
    chapter: Chapter,
    data: DataConfig,
    *,
    first_step: int,
    lanes: range,
    collate: CollateSteps,
) -> Iterator[StepBatch]:
    """Collate the rows of each step in background threads, from first_step to the chapter's end."""
    together = 2 if data.copy_paste > 0 else 1
    start, stop = extend_to_pairs(chapter.first_step, chapter.stop_step, pairs=together == 2)
    first, _ = extend_to_pairs(first_step, stop, pairs=together == 2)
    whole = chapter._replace(first_step=start, stop_step=stop)
    steps = _steps(tables, whole, first, lanes=lanes)

    def collate_steps(numbered: tuple[tuple[int, pa.Table], ...]) -> list[StepBatch]:
        batches = collate([rows for _, rows in numbered])
        return [
            StepBatch(step=step, epoch=rows["step_epoch"][0].as_py(), microbatches=microbatches)
            for (step, rows), microbatches in zip(numbered, batches, strict=True)
        ]

    threads = min(data.prefetch_batches, _MAX_THREADS)
    groups = prefetch(
        _group(steps, together),
        collate_steps,
        max_pending=data.prefetch_batches,
        threads=threads,
    )
    return _yield_steps(groups, range(first_step, chapter.stop_step))


def _group(steps: Iterable[From], together: int) -> Generator[tuple[From, ...], None, None]:
    """Take steps together; their number is a multiple."""
    yield from zip(*[iter(steps)] * together, strict=True)


def _yield_steps(
    groups: Generator[list[StepBatch], None, None], wanted: range
) -> Generator[StepBatch, None, None]:
    """Yield the wanted steps of groups."""
    with closing(groups):
        for group in groups:
            yield from (each for each in group if each.step in wanted)


def _steps(
    tables: Iterable[pa.Table], chapter: Chapter, first_step: int, *, lanes: range
) -> Generator[tuple[int, pa.Table], None, None]:
    """Cut tables into steps and check the plan: every step once, in order, own lanes only."""
    due = chapter.first_step
    for table in tables:
        step, lane = table["step"].to_numpy(), table["lane"].to_numpy()
        for first in range(0, len(table), len(lanes)):
            part = slice(first, first + len(lanes))
            arrived = list(dict.fromkeys(step[part].tolist()))
            if arrived != [due] or due >= chapter.stop_step:
                expected = f"step {due}" if due < chapter.stop_step else "the end"
                raise _plan_violation(
                    chapter, f"got step {', '.join(map(str, arrived))}, expected {expected}"
                )
            if lane[part].tolist() != list(lanes):
                raise _plan_violation(
                    chapter,
                    f"step {due}: rows of lanes {lane[part].tolist()} of the global batch arrived "
                    f"at the worker that owns lanes {list(lanes)}",
                )
            if due >= first_step:
                yield due, table.slice(first, len(lanes))
            due += 1
    if due != chapter.stop_step:
        raise _plan_violation(
            chapter, f"the data ended before step {due}, the last step is {chapter.stop_step - 1}"
        )


def _plan_violation(chapter: Chapter, what: str) -> TrainingError:
    return TrainingError(
        f"the data stream does not follow its plan in chapter {chapter.name}: {what}. "
        "No step was trained on it; start the run again under the same name to resume it"
    )
