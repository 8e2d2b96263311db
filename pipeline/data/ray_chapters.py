"""A chapter of the plan as one Ray Data dataset, split over the workers of a Ray Train run.

Ray Data reads, and decodes where the recipe says so; the plan alone decides the order. Each item
is one task and gives one block, items go by step and then by rank, and the blocks of a round have
equal length. Ray's equal split gives a block to the worker with the fewest rows so far and, with
preserve_order, looks at nothing else, so the blocks go round the ranks in order. Each row carries
its step and lane, and pipeline/data/stream.py holds what arrives to them.
"""

import logging
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import ray
import ray.data
import ray.train
from ray.exceptions import RayTaskError

from pipeline import storage
from pipeline.data.manifest import read_manifest
from pipeline.data.plan import ROWS_PER_ITEM, Chapter, Item, Plan
from pipeline.data.rows import read_item
from pipeline.data.stream import plan_of
from pipeline.errors import PipelineError
from pipeline.recipe import DataConfig

_DECODED_BYTES_PER_ITEM = 64 * 2**20


@dataclass(frozen=True, slots=True)
class _Read:
    """What a task needs to know besides its item."""

    split_uri: str
    files: tuple[str, ...]
    data: DataConfig
    seed: int
    with_masks: bool


class ChapterConfig(ray.train.DataConfig):
    """Tells Ray Train to run a chapter's items where it would split the dataset of that name."""

    def __init__(self, plan: Plan, chapters: tuple[Chapter, ...], read: _Read) -> None:
        super().__init__()
        self._plan = plan
        self._chapters = {chapter.name: chapter for chapter in chapters}
        self._read = read

    def configure(
        self,
        datasets: dict[str, ray.data.Dataset],
        world_size: int,
        worker_handles: Any = None,  # noqa: ANN401  Ray's signature
        worker_node_ids: Any = None,  # noqa: ANN401
        **_: Any,  # noqa: ANN401
    ) -> list[dict[str, ray.data.DataIterator]]:
        """Make the chapters named in `datasets`, for as many workers as there are."""
        quiet()
        splits: list[dict[str, ray.data.DataIterator]] = [{} for _ in range(world_size)]
        for name in datasets:
            dataset = _dataset(
                self._plan, self._chapters[name], world_size=world_size, read=self._read
            )
            for rank, split in enumerate(dataset.streaming_split(world_size, equal=True)):
                splits[rank][name] = split
        return splits


def make_chapters(
    split_uri: str,
    data: DataConfig,
    *,
    seed: int,
    global_batch: int,
    chapters: tuple[Chapter, ...],
    with_masks: bool,
) -> tuple[dict[str, ray.data.Dataset], ChapterConfig]:
    """Make the datasets and the DataConfig of a TorchTrainer; see stream.ray_chapters."""
    quiet()
    # Workers and tasks have working directories of their own.
    split_uri = storage.absolute(split_uri)
    manifest = read_manifest(split_uri)
    plan = plan_of(manifest, seed=seed, global_batch=global_batch)
    files = tuple(shard.file for shard in manifest.shards)
    read = _Read(split_uri, files, data, seed, with_masks)
    # Only the names count: ChapterConfig makes the datasets once the number of workers is known.
    datasets = {chapter.name: ray.data.range(1) for chapter in chapters}
    return datasets, ChapterConfig(plan, chapters, read)


def worker_tables(chapter: Chapter) -> Generator[pa.Table, None, None]:
    """Yield the tables of this worker's items, inside a Ray Train worker.

    Raises:
        PipelineError: what a task raised, without Ray's wrapping.
    """
    shard = ray.train.get_dataset_shard(chapter.name)
    tables = shard.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
    try:
        yield from tables
    except RayTaskError as error:
        cause = error.cause
        while cause is not None and not isinstance(cause, PipelineError):
            cause = cause.__cause__
        if cause is None:
            raise
        raise cause from error


def quiet() -> None:
    """Turn off what Ray Data writes on workers' and drivers' output while a chapter runs."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)


def _dataset(plan: Plan, chapter: Chapter, *, world_size: int, read: _Read) -> ray.data.Dataset:
    rows_per_item = ROWS_PER_ITEM
    if read.data.decode_in == "tasks":
        widest = max(read.data.short_edge_px) * read.data.long_edge_px * 3
        rows_per_item = max(1, min(rows_per_item, _DECODED_BYTES_PER_ITEM // widest))
    items = [
        {"item": item.to_bytes()}
        for item in plan.items(
            chapter.first_step,
            chapter.stop_step,
            world_size=world_size,
            rows_per_item=rows_per_item,
        )
    ]
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        partial(_load, read=read), batch_size=None, batch_format="pyarrow", zero_copy_batch=True
    )
    dataset.set_name(chapter.name)
    dataset.context.execution_options.preserve_order = True
    # One block an item, however large: the split counts on it.
    dataset.context.target_max_block_size = None
    return dataset


def _load(items: pa.Table, *, read: _Read) -> pa.Table:
    """Read one item, in a task of Ray Data."""
    item = Item.from_bytes(items["item"][0].as_py())
    rows = read_item(item, split_uri=read.split_uri, files=read.files, with_masks=read.with_masks)
    if read.data.decode_in == "tasks":
        from pipeline.data.collate import prepare_rows  # noqa: PLC0415  imports torch

        rows = prepare_rows(rows, read.data, seed=read.seed)
    return rows
