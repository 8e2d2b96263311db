"""Run a chapter of the plan as one Ray Data dataset, split over the workers of a Ray Train run.

Ray Data reads the rows, and decodes them if the recipe says so; the plan alone decides the order.
Each item is one task and yields one block. Items are ordered by step, then by rank, and the blocks
of a round have equal length. Ray's equal split assigns a block to the worker with the fewest rows
so far and, with preserve_order, considers nothing else, so blocks go to the ranks in turn. Each row
carries its step and lane, and pipeline/data/stream.py checks both on arrival.
"""

import logging
from collections.abc import Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
import ray.data
import ray.train

from pipeline import storage
from pipeline.data.manifest import read_manifest
from pipeline.data.plan import Chapter, Plan
from pipeline.data.ray_pacing import PacedScheduling
from pipeline.data.read_rows import (
    bytes_per_row,
    make_plan,
    raise_if_failed,
    rows_per_item,
    run_item,
    train_columns,
)
from pipeline.data.schema import PLANES, Task

if TYPE_CHECKING:
    # Ray Data's own processes import this module, and should not import torch.
    from pipeline.recipe import DataConfig

_DECODED_BYTES_PER_ITEM = 128 * 2**20
_PREFETCHED_ITEMS_PER_WORKER = 4
_MIN_PREFETCH_BYTES = 128 * 2**20

_RunItem = Callable[[pa.Table], pa.Table]


class ChapterConfig(ray.train.DataConfig):
    """A Ray Train DataConfig that runs the items of chapters instead of splitting datasets."""

    def __init__(
        self,
        plan: Plan,
        chapters: tuple[Chapter, ...],
        *,
        run: _RunItem,
        rows_per_item: int,
        bytes_per_row: int,
    ) -> None:
        super().__init__()
        self._plan = plan
        self._chapters = {chapter.name: chapter for chapter in chapters}
        self._run = run
        self._rows_per_item = rows_per_item
        self._bytes_per_row = bytes_per_row

    def configure(
        self,
        datasets: dict[str, ray.data.Dataset],
        world_size: int,
        worker_handles: Any = None,  # noqa: ANN401  Ray's signature
        worker_node_ids: Any = None,  # noqa: ANN401
        **_: Any,  # noqa: ANN401
    ) -> list[dict[str, ray.data.DataIterator]]:
        """Make the chapters named in `datasets` and split them over the workers."""
        splits: list[dict[str, ray.data.DataIterator]] = [{} for _ in range(world_size)]
        for name in datasets:
            dataset = self._dataset(self._chapters[name], world_size)
            for rank, split in enumerate(dataset.streaming_split(world_size, equal=True)):
                splits[rank][name] = split
        return splits

    def _dataset(self, chapter: Chapter, world_size: int) -> ray.data.Dataset:
        items = list(
            self._plan.items(
                chapter.first_step,
                chapter.stop_step,
                world_size=world_size,
                rows_per_item=self._rows_per_item,
            )
        )
        packed = [{"item": item.to_bytes()} for item in items]
        dataset = ray.data.from_items(packed, override_num_blocks=len(packed)).map_batches(
            self._run, batch_size=None, batch_format="pyarrow", zero_copy_batch=True
        )
        dataset.set_name(chapter.name)
        context = dataset.context
        context.execution_options.preserve_order = True
        # Without a limit, tasks prefetch until the object store is half full.
        item_bytes = max(len(item.step) for item in items) * self._bytes_per_row
        context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(
            object_store_memory=max(
                _MIN_PREFETCH_BYTES, _PREFETCHED_ITEMS_PER_WORKER * world_size * item_bytes
            )
        )
        # One block per item, however large: the order of the split depends on it.
        context.target_max_block_size = None
        context.custom_execution_callback_classes = [PacedScheduling]
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.set_config("pipeline.quiet", _QuietWhereUnpacked())
        return dataset


class _QuietWhereUnpacked:
    """Silences Ray Data's progress output in the process that unpickles it.

    That process is Ray Data's own and offers no other hook. Warnings stay, and its log file stays
    complete.
    """

    def __reduce__(self) -> tuple[Callable[[], "_QuietWhereUnpacked"], tuple[()]]:
        return _quiet, ()


def make_chapters(
    split_uri: str,
    data: "DataConfig",
    *,
    seed: int,
    global_batch: int,
    chapters: tuple[Chapter, ...],
    with_masks: bool,
) -> tuple[dict[str, ray.data.Dataset], ChapterConfig]:
    """Make the datasets and the DataConfig of a TorchTrainer; see stream.ray_chapters."""
    _quiet()
    # Workers and tasks have other working directories.
    split_uri = storage.absolute(split_uri)
    manifest = read_manifest(split_uri)
    prepare, row_bytes, item_rows = None, bytes_per_row(manifest), rows_per_item(manifest)
    if data.decode_in == "tasks":
        prepare, row_bytes = _choose_prepare(data, manifest.task, seed=seed)
        item_rows = max(1, min(item_rows, _DECODED_BYTES_PER_ITEM // row_bytes))
    run = partial(
        run_item,
        split_uri=split_uri,
        files=tuple(shard.file for shard in manifest.shards),
        columns=train_columns(manifest.task, with_masks=with_masks or data.edits_masks),
        prepare=prepare,
    )
    plan = make_plan(
        split_uri,
        manifest,
        seed=seed,
        global_batch=global_batch,
        repeat_threshold=data.repeat_threshold,
        pairs=data.copy_paste > 0,
    )
    entries = tuple(entry for chapter in chapters for entry in chapter.entries())
    # Placeholders: ChapterConfig makes a dataset when a worker first asks for its name.
    datasets = dict.fromkeys((entry.name for entry in entries), ray.data.range(1))
    config = ChapterConfig(plan, entries, run=run, rows_per_item=item_rows, bytes_per_row=row_bytes)
    return datasets, config


def _choose_prepare(
    data: "DataConfig", task: Task, *, seed: int
) -> tuple[Callable[[pa.Table], pa.Table], int]:
    """Return the prepare_rows of a task, and the approximate size of a prepared row."""
    # Both modules import torch.
    if task == "semantic":
        from pipeline.data.collate_semantic import prepare_rows as prepare  # noqa: PLC0415

        row_bytes = data.crop_px**2 * (3 + len(PLANES))
    else:
        from pipeline.data.collate import prepare_rows as prepare  # noqa: PLC0415

        resized = max(data.short_edge_px) * data.long_edge_px
        row_bytes = 3 * (resized if data.scale_jitter is None else data.crop_px**2)
    return partial(prepare, data=data, seed=seed), row_bytes


def worker_shard(chapter: Chapter) -> ray.data.DataIterator:
    """Return this worker's part of a chapter."""
    shard: ray.data.DataIterator = ray.train.get_dataset_shard(chapter.name)
    return shard


def tables(shard: ray.data.DataIterator) -> Generator[pa.Table, None, None]:
    """Yield the tables of a worker's items.

    Raises:
        PipelineError: a task failed.
    """
    # None means whole blocks; Ray's annotations do not allow it. One item is prefetched here, in
    # addition to the collated batches.
    whole_block: Any = None
    batches = shard.iter_batches(batch_size=whole_block, batch_format="pyarrow", prefetch_batches=1)
    for rows in batches:
        yield raise_if_failed(rows)


def _quiet() -> _QuietWhereUnpacked:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    for handler in logging.getLogger("ray.data").handlers:
        # Ray's own console, not handlers that others have put beside it.
        if type(handler).__module__.startswith("ray."):
            handler.setLevel(logging.WARNING)
    # This logger warns that the bars are off.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    return _QuietWhereUnpacked()
