"""Run one part of the system in a process of its own, and print its peak memory as JSON.

    python -m pipeline.bench.memory_probe ingest ROOT OUT
    python -m pipeline.bench.memory_probe driver SHARDS
    python -m pipeline.bench.memory_probe reader SHARDS
    python -m pipeline.bench.memory_probe worker SHARDS

Each imports only what its process in a run imports.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.bench.timing import cpu_seconds, read_peak_mb
from pipeline.data.manifest import read_manifest
from pipeline.data.plan import Plan

_BATCH, _STEPS = 16, 200
"""Of the run that the others are parts of."""


def _ingest(root: str, out: str) -> None:
    """Index the annotations and make all shards."""
    from pipeline.bench.coco_folder import SPLIT  # noqa: PLC0415
    from pipeline.data.ingest import ingest_dataset  # noqa: PLC0415
    from pipeline.data.ingest_config import CocoIngest  # noqa: PLC0415

    ingest_dataset(CocoIngest(root=root, split=SPLIT, out=out, workers=0))


def _driver(shards: str) -> None:
    """Plan the steps, as the driver of a run does."""
    for _ in _make_plan(shards).items(0, _STEPS, rows_per_item=64):
        pass


def _reader(shards: str) -> None:
    """Read the rows of all steps, as data tasks do."""
    from pipeline.data.read_rows import read_item, rows_per_item, train_columns  # noqa: PLC0415

    manifest = read_manifest(shards)
    files = tuple(shard.file for shard in manifest.shards)
    columns = train_columns(manifest.task)
    for item in _make_plan(shards).items(0, _STEPS, rows_per_item=rows_per_item(manifest)):
        read_item(item, split_uri=shards, files=files, columns=columns)


def _worker(shards: str) -> None:
    """Read and collate the batches of all steps, as a worker without Ray does."""
    from pipeline.bench.our_feed import feed_batches, make_data_config  # noqa: PLC0415

    data = make_data_config(Path(shards), short_edge_px=(64,))
    for _ in feed_batches(data, images=_BATCH * _STEPS, batch=_BATCH):
        pass


def _make_plan(shards: str) -> Plan:
    from pipeline.data.read_rows import make_plan  # noqa: PLC0415

    return make_plan(shards, read_manifest(shards), seed=0, global_batch=_BATCH, repeat_threshold=0)


PARTS: dict[str, Callable[..., None]] = {
    "ingest": _ingest,
    "driver": _driver,
    "reader": _reader,
    "worker": _worker,
}


if __name__ == "__main__":
    PARTS[sys.argv[1]](*sys.argv[2:])
    answer = {"peak_mb": read_peak_mb(), "cpu_s": cpu_seconds()}
    print("\n" + json.dumps(answer))  # noqa: T201
