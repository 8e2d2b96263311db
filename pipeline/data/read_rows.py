"""Read the rows of plan items from shards, as a Ray Data task does.

Data tasks import only this module, so it imports Arrow and nothing heavier.
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
from pipeline.data.schema import PLANES, Task, check_columns
from pipeline.errors import DatasetError, PipelineError

_log = logging.getLogger(__name__)

_READERS = 16

_ITEM_BYTES = 32 * 2**20
"""Limit for the stored rows of an item. A task holds them twice, plus a part of a row group."""

_DEFAULT_ROW_BYTES = 2**18

_ROWS_AT_ONCE = 4
"""Rows decoded at a time: a row group of Cityscapes has 71 MB, often with few rows to read."""

PLAN_COLUMNS = ("step", "step_epoch", "lane", "epoch", "repeat")
"""Position of a row in the plan; sent with the row."""

_FAILED = "failed"
"""The only column of a failed task."""

_IMAGE_COLUMNS = ("image_id", "height", "width", "image")
_TARGET_COLUMNS: dict[Task, tuple[str, ...]] = {
    "instance": ("boxes_xyxy", "category_index", "is_crowd", "squeeze_field"),
    "semantic": PLANES,
}


def train_columns(task: Task, *, with_masks: bool = False) -> tuple[str, ...]:
    """Return the columns that training reads.

    Args:
        task: of the shards.
        with_masks: include the run-length masks of instances.
    """
    masks = ("rle",) if with_masks and task == "instance" else ()
    return _IMAGE_COLUMNS + _TARGET_COLUMNS[task] + masks


def bytes_per_row(manifest: Manifest) -> int:
    """Return the mean size of a stored row."""
    stored = sum(shard.size_bytes for shard in manifest.shards)
    return stored // max(1, manifest.images) or _DEFAULT_ROW_BYTES


def rows_per_item(manifest: Manifest) -> int:
    """Choose the rows per task, fewer if they are large; the order does not depend on it."""
    return max(1, min(ROWS_PER_ITEM, _ITEM_BYTES // bytes_per_row(manifest)))


def make_plan(
    split_uri: str,
    manifest: Manifest,
    *,
    seed: int,
    global_batch: int,
    repeat_threshold: float,
    pairs: bool = False,
) -> Plan:
    """Make the plan of a split.

    Args:
        split_uri: folder of shards; read only if rows repeat.
        manifest: of the split.
        seed: of the recipe.
        global_batch: samples per step.
        repeat_threshold: category frequency below which images are repeated; 0 repeats none.
        pairs: let the samples of two steps exchange objects.

    Raises:
        DatasetError: the split has no rows, or a shard cannot be read.
    """
    groups = [
        RowGroup(shard_index, row_group_index, rows)
        for shard_index, shard in enumerate(manifest.shards)
        for row_group_index, rows in enumerate(shard.row_groups)
    ]
    repeats = _read_repeats(split_uri, manifest, repeat_threshold) if repeat_threshold else None
    return Plan(groups, seed=seed, global_batch=global_batch, repeats=repeats, pairs=pairs)


def read_item(
    item: Item, *, split_uri: str, files: tuple[str, ...], columns: Sequence[str]
) -> pa.Table:
    """Read an item's rows, by step, then by lane, with the plan's columns.

    Args:
        item: the rows to read.
        split_uri: folder of shards.
        files: name of each shard.
        columns: to read.

    Raises:
        DatasetError: a shard cannot be read, or has fewer rows than dataset.json says.
    """
    # Each row group is read once, its rows in ascending order.
    by_row = np.lexsort((item.row, item.row_group_index, item.shard_index))
    groups = np.stack([item.shard_index, item.row_group_index])[:, by_row]
    starts = np.flatnonzero(np.diff(groups, prepend=-1).any(axis=0))
    tables, order = [], []
    for part in np.split(by_row, starts[1:]):
        shard, row_group = int(item.shard_index[part[0]]), int(item.row_group_index[part[0]])
        uri = storage.join(split_uri, files[shard])
        tables.append(read_rows(uri, row_group, item.row[part], columns=columns))
        order.append(part)
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
    """Read and prepare the rows of one item in a Ray Data task.

    Args:
        packed: one row, whose column `item` holds Item.to_bytes.
        split_uri: folder of shards.
        files: name of each shard.
        columns: to read.
        prepare: applied to the rows after reading.
    """
    item = Item.from_bytes(packed["item"][0].as_py())
    try:
        rows = read_item(item, split_uri=split_uri, files=files, columns=columns)
        return rows if prepare is None else prepare(rows)
    except PipelineError as error:
        # Ray Data would drop the type and the text of the error. The table has as many rows as the
        # item, so that it reaches the worker that owns the item.
        failure = [type(error).__name__, str(error)]
        return pa.table({_FAILED: pa.array([failure] * len(item.step))})


def raise_if_failed(rows: pa.Table) -> pa.Table:
    """Return the rows of run_item, or raise its error.

    Raises:
        PipelineError: the task failed.
    """
    if _FAILED in rows.column_names:
        kind, text = rows[_FAILED][0].as_py()
        raise getattr(errors, kind)(text)
    return rows


def _read_repeats(split_uri: str, manifest: Manifest, threshold: float) -> Repeats:
    """Compute repeat factors from the categories of each row."""
    uris = [storage.join(split_uri, shard.file) for shard in manifest.shards]
    has_crowds = manifest.task == "instance"
    columns = ["image_id", "category_index", *(["is_crowd"] if has_crowds else [])]
    with ThreadPoolExecutor(_READERS) as pool:
        table = pa.concat_tables(pool.map(lambda uri: read_columns(uri, columns), uris))
    counts = pc.list_value_length(table["category_index"]).to_numpy().astype(np.int64)
    row = np.repeat(np.arange(len(table)), counts)
    category = table["category_index"].combine_chunks().flatten().to_numpy().astype(np.int64)
    if has_crowds:
        # Crowds are not trained, so they do not count.
        crowd = table["is_crowd"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        if len(crowd) != len(category):
            raise DatasetError(
                f"{split_uri}: rows have {len(category)} categories and {len(crowd)} crowd flags; "
                "ingest the split again"
            )
        row, category = row[~crowd], category[~crowd]
    factors = repeat_factors(row, category, rows=len(table), threshold=threshold)
    _log.info(
        "data: repeat threshold %g, about %.0f samples per epoch from %d images",
        *(threshold, factors.sum(), len(table)),
    )
    return Repeats(factors=factors, image_ids=table["image_id"].to_numpy())


def read_columns(uri: str, columns: list[str]) -> pa.Table:
    """Read whole columns of a shard.

    Raises:
        DatasetError: the shard cannot be read.
    """
    with _open_shard(uri, ", ".join(columns), columns) as shard:
        return shard.read(columns=columns, use_threads=False)


def read_rows(uri: str, row_group: int, rows: Ints, *, columns: Sequence[str]) -> pa.Table:
    """Read rows of a row group, given in ascending order, with or without repetitions.

    Raises:
        DatasetError: the shard cannot be read, or the row group has too few rows.
    """
    parts, first = [], 0
    with _open_shard(uri, f"row group {row_group}", columns) as shard:
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
            raise IndexError(f"row {rows[-1]} of {first} rows")
    return pa.Table.from_batches(parts)


@contextmanager
def _open_shard(uri: str, part: str, columns: Sequence[str]) -> Iterator[pq.ParquetFile]:
    """Open a shard that has the columns; an error names the part that was read."""
    fs, path = storage.resolve(uri)
    try:
        with fs.open_input_file(path) as source, pq.ParquetFile(source, pre_buffer=True) as shard:
            check_columns(shard.schema_arrow, columns)
            yield shard
    except (OSError, IndexError, UnicodeDecodeError, pa.ArrowException) as error:
        raise DatasetError(
            f"{uri}, {part}: {type(error).__name__}: {error}. "
            "The shard is missing, damaged or not the one that dataset.json describes; "
            "ingest the split again"
        ) from error
