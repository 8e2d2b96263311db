"""Read the rows of a plan item out of the shards: what a data task does.

Data tasks import this module alone, so it needs Arrow and nothing heavier.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import errors, storage
from pipeline.data.manifest import Manifest
from pipeline.data.plan import ROWS_PER_ITEM, Ints, Item, Plan, RowGroup
from pipeline.data.repeat_factors import Repeats, repeat_factors
from pipeline.data.schema import PLANES, Task
from pipeline.errors import DatasetError, PipelineError

_log = logging.getLogger(__name__)

_READERS = 16

_ITEM_BYTES = 32 * 2**20
"""Rows of an item take at most so much, as they are stored. A task holds them twice, and the parts
of the row group that it reads."""

_UNKNOWN_ROW_BYTES = 2**18

_ROWS_AT_ONCE = 4
"""Read of a row group at a time: one of Cityscapes has 71 MB, of which few rows may be wanted."""

PLAN_COLUMNS = ("step", "step_epoch", "lane", "epoch", "repeat")
"""Where a row stands in the plan; they travel with it."""

_FAILED = "failed"
"""The one column that comes from a task that met an error."""

_IMAGE_COLUMNS = ("image_id", "height", "width", "image")
_TARGET_COLUMNS: dict[Task, tuple[str, ...]] = {
    "instance": ("boxes_xyxy", "category_index", "is_crowd", "squeeze_field"),
    "semantic": PLANES,
}


def train_columns(task: Task, *, with_masks: bool = False) -> tuple[str, ...]:
    """Name the columns that training reads.

    Args:
        task: of the shards.
        with_masks: with the run-length masks of instances.
    """
    return _IMAGE_COLUMNS + _TARGET_COLUMNS[task] + (("rle",) if with_masks else ())


def bytes_per_row(manifest: Manifest) -> int:
    """Tell how large a row is, as it is stored."""
    stored = sum(shard.size_bytes for shard in manifest.shards)
    return stored // max(1, manifest.images) or _UNKNOWN_ROW_BYTES


def rows_per_item(manifest: Manifest) -> int:
    """Choose how many rows a task reads: fewer where they are large. It changes no order."""
    return max(1, min(ROWS_PER_ITEM, _ITEM_BYTES // bytes_per_row(manifest)))


def plan_of(
    split_uri: str, manifest: Manifest, *, seed: int, global_batch: int, repeat_threshold: float
) -> Plan:
    """Plan the split that a manifest describes.

    Args:
        split_uri: folder of shards; read only where rows repeat.
        manifest: what it holds.
        seed: the recipe's.
        global_batch: samples of a step.
        repeat_threshold: images with categories in a smaller share of the images are repeated.

    Raises:
        DatasetError: the split has no rows, or a shard cannot be read.
    """
    groups = [
        RowGroup(shard_index, row_group_index, rows)
        for shard_index, shard in enumerate(manifest.shards)
        for row_group_index, rows in enumerate(shard.row_groups)
    ]
    repeats = _repeats(split_uri, manifest, repeat_threshold) if repeat_threshold else None
    return Plan.of(groups, seed=seed, global_batch=global_batch, repeats=repeats)


def read_item(
    item: Item, *, split_uri: str, files: tuple[str, ...], columns: Sequence[str]
) -> pa.Table:
    """Read an item's rows, by step, then by lane, with their place in the plan.

    Args:
        item: which rows.
        split_uri: folder of shards.
        files: name of each shard.
        columns: to read.

    Raises:
        DatasetError: a shard cannot be read, or holds fewer rows than dataset.json says.
    """
    # One number for each row group, so that each is read once.
    place = item.shard_index * (item.row_group_index.max() + 1) + item.row_group_index
    tables, order = [], []
    for each in np.unique(place):
        where = np.flatnonzero(place == each)
        shard, row_group = int(item.shard_index[where[0]]), int(item.row_group_index[where[0]])
        uri = storage.join(split_uri, files[shard])
        by_row = np.argsort(item.row[where], kind="stable")
        tables.append(read_rows(uri, row_group, item.row[where[by_row]], columns=columns))
        order.append(where[by_row])
    table = pa.concat_tables(tables).take(pa.array(np.argsort(np.concatenate(order))))
    for name in PLAN_COLUMNS:
        table = table.append_column(name, pa.array(getattr(item, name)))
    return table.combine_chunks()


def run_item(
    packed: pa.Table,
    *,
    split_uri: str,
    files: tuple[str, ...],
    columns: Sequence[str],
    prepare: Callable[[pa.Table], pa.Table] | None,
) -> pa.Table:
    """Read one item and prepare its rows: a task of Ray Data.

    Args:
        packed: one row, whose column `item` is Item.to_bytes.
        split_uri: folder of shards.
        files: name of each shard.
        columns: to read.
        prepare: what else to do with the rows here.
    """
    item = Item.from_bytes(packed["item"][0].as_py())
    try:
        rows = read_item(item, split_uri=split_uri, files=files, columns=columns)
        return rows if prepare is None else prepare(rows)
    except PipelineError as error:
        # Ray Data would lose its type and text on the way. As many rows as the item has, so that it
        # reaches the worker whose item it is.
        said = [type(error).__name__, str(error)]
        return pa.table({_FAILED: pa.array([said] * len(item.step))})


def unless_failed(rows: pa.Table) -> pa.Table:
    """Return what run_item made, or raise what it met.

    Raises:
        PipelineError: the task met it.
    """
    if _FAILED in rows.column_names:
        kind, text = rows[_FAILED][0].as_py()
        raise getattr(errors, kind)(text)
    return rows


def _repeats(split_uri: str, manifest: Manifest, threshold: float) -> Repeats:
    """Read which categories each row has: two short columns of every shard."""
    places = [storage.join(split_uri, shard.file) for shard in manifest.shards]
    has_crowds = manifest.task == "instance"
    columns = ["image_id", "category_index", *(["is_crowd"] if has_crowds else [])]
    with ThreadPoolExecutor(_READERS) as pool:
        table = pa.concat_tables(pool.map(lambda uri: _read_columns(uri, columns), places))
    counts = pc.list_value_length(table["category_index"]).to_numpy().astype(np.int64)
    row = np.repeat(np.arange(len(table)), counts)
    category = table["category_index"].combine_chunks().flatten().to_numpy().astype(np.int64)
    if has_crowds:
        # What is not trained does not ask for more training.
        crowd = table["is_crowd"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        row, category = row[~crowd], category[~crowd]
    factors = repeat_factors(row, category, rows=len(table), threshold=threshold)
    _log.info(
        "data: with repeat threshold %g an epoch has about %.0f samples of %d images",
        *(threshold, factors.sum(), len(table)),
    )
    return Repeats(factors=factors, image_ids=table["image_id"].to_numpy())


def _read_columns(uri: str, columns: list[str]) -> pa.Table:
    with _shard(uri, "its categories") as shard:
        return shard.read(columns=columns, use_threads=False)


def read_rows(uri: str, row_group: int, rows: Ints, *, columns: Sequence[str]) -> pa.Table:
    """Read rows of a row group, a few at a time; they rise, and may repeat.

    Raises:
        DatasetError: the shard cannot be read, or has not so many rows.
    """
    parts, first = [], 0
    with _shard(uri, f"row group {row_group}") as shard:
        for batch in shard.iter_batches(
            batch_size=_ROWS_AT_ONCE,
            row_groups=[row_group],
            columns=list(columns),
            use_threads=False,
        ):
            low, high = np.searchsorted(rows, (first, first + len(batch)))
            parts.append(batch.take(pa.array(rows[low:high] - first)))
            first += len(batch)
        if rows[-1] >= first:
            raise IndexError(f"row {rows[-1]} is wanted, it has {first} rows")
    return pa.Table.from_batches(parts)


@contextmanager
def _shard(uri: str, part: str) -> Iterator[pq.ParquetFile]:
    """Open a shard to read a part of it."""
    fs, path = storage.resolve(uri)
    try:
        with fs.open_input_file(path) as source, pq.ParquetFile(source, pre_buffer=True) as shard:
            yield shard
    except (OSError, IndexError, pa.ArrowException) as error:
        raise DatasetError(
            f"{uri}, {part}: {type(error).__name__}: {error}. "
            "The shard is missing, damaged or not the one that dataset.json describes; "
            "ingest the split again"
        ) from error
