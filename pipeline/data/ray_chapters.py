"""A chapter of the plan as one Ray Data dataset, split over the workers of a Ray Train run.

Ray Data reads, and decodes where the recipe says so; the plan alone decides the order. Each item
is one task and gives one block, items go by step and then by rank, and the blocks of a round have
equal length. Ray's equal split gives a block to the worker with the fewest rows so far and, with
preserve_order, looks at nothing else, so the blocks go round the ranks in order. Each row carries
its step and lane, and pipeline/data/stream.py holds what arrives to them.
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
from pipeline.data.read_rows import (
    bytes_per_row,
    plan_of,
    rows_per_item,
    run_item,
    train_columns,
    unless_failed,
)
from pipeline.data.schema import PLANES, Task

if TYPE_CHECKING:
    # Ray Data's own processes import this module; they need no torch.
    from pipeline.recipe import DataConfig

_DECODED_BYTES_PER_ITEM = 128 * 2**20
_ITEMS_AHEAD_OF_A_WORKER = 4
_LEAST_AHEAD_BYTES = 128 * 2**20

_RunItem = Callable[[pa.Table], pa.Table]


class ChapterConfig(ray.train.DataConfig):
    """Tells Ray Train to run a chapter's items where it would split the dataset of that name."""

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
        """Make the chapters named in `datasets`, for as many workers as there are."""
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
        # Without a limit, tasks read ahead of a slow training until the object store is half full.
        item_bytes = max(len(item.step) for item in items) * self._bytes_per_row
        context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(
            object_store_memory=max(
                _LEAST_AHEAD_BYTES, _ITEMS_AHEAD_OF_A_WORKER * world_size * item_bytes
            )
        )
        # One block an item, however large: the split counts on it.
        context.target_max_block_size = None
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.set_config("pipeline.quiet", _QuietWhereUnpacked())
        return dataset


class _QuietWhereUnpacked:
    """Travels with a dataset to the process that runs it, and silences Ray Data there.

    That process is Ray Data's own and offers no other hook. What it says of its progress would
    stand between the lines of the training; warnings stay, and its log file stays complete.
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
    # Workers and tasks have working directories of their own.
    split_uri = storage.absolute(split_uri)
    manifest = read_manifest(split_uri)
    prepare, row_bytes, item_rows = None, bytes_per_row(manifest), rows_per_item(manifest)
    if data.decode_in == "tasks":
        prepare, row_bytes = _decoding(data, manifest.task, seed=seed)
        item_rows = max(1, min(item_rows, _DECODED_BYTES_PER_ITEM // row_bytes))
    run = partial(
        run_item,
        split_uri=split_uri,
        files=tuple(shard.file for shard in manifest.shards),
        columns=train_columns(manifest.task, with_masks=with_masks),
        prepare=prepare,
    )
    plan = plan_of(
        split_uri,
        manifest,
        seed=seed,
        global_batch=global_batch,
        repeat_threshold=data.repeat_threshold,
    )
    entries = tuple(entry for chapter in chapters for entry in chapter.entries())
    # Only the names count: ChapterConfig makes a dataset when a worker first asks for its name.
    datasets = dict.fromkeys((entry.name for entry in entries), ray.data.range(1))
    config = ChapterConfig(plan, entries, run=run, rows_per_item=item_rows, bytes_per_row=row_bytes)
    return datasets, config


def _decoding(
    data: "DataConfig", task: Task, *, seed: int
) -> tuple[Callable[[pa.Table], pa.Table], int]:
    """Choose what tasks do with rows, and tell about how large a row is then."""
    # They import torch.
    if task == "semantic":
        from pipeline.data.collate_semantic import prepare_rows as prepare  # noqa: PLC0415

        row_bytes = data.crop_px**2 * (3 + len(PLANES))
    else:
        from pipeline.data.collate import prepare_rows as prepare  # noqa: PLC0415

        row_bytes = max(data.short_edge_px) * data.long_edge_px * 3
    return partial(prepare, data=data, seed=seed), row_bytes


def worker_shard(chapter: Chapter) -> ray.data.DataIterator:
    """Ask Ray Train for this worker's part of a chapter."""
    shard: ray.data.DataIterator = ray.train.get_dataset_shard(chapter.name)
    return shard


def tables(shard: ray.data.DataIterator) -> Generator[pa.Table, None, None]:
    """Yield the tables of a worker's items.

    Raises:
        PipelineError: a task met it.
    """
    # None takes whole blocks, which Ray's annotations leave out. One item is read ahead; what is
    # collated ahead comes on top.
    whole: Any = None
    for rows in shard.iter_batches(batch_size=whole, batch_format="pyarrow", prefetch_batches=1):
        yield unless_failed(rows)


def _quiet() -> _QuietWhereUnpacked:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.WARNING)
    # It warns that the bars are off.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    return _QuietWhereUnpacked()
