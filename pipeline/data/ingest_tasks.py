"""Make shards in Ray Data tasks, one per shard and CPU."""

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import cv2
import ray

from pipeline.data.shards import ShardReport, ShardSettings, make_shard, parse_report
from pipeline.errors import StorageError
from pipeline.progress import log_silence
from pipeline.ray_connection import connect, explain_lost_processes

_MEMORY_ADVICE = (
    "use fewer tasks at once: --workers 1. The same command continues from the finished shards"
)


def make_shards_on_ray(
    parts: list[tuple[str, bytes]], settings: ShardSettings, *, workers: int
) -> Iterator[ShardReport]:
    """Make shards on Ray and yield their reports as they finish.

    Args:
        parts: name and packed images of each shard.
        settings: shared by all shards.
        workers: concurrent tasks; -1 for one per CPU.
    """
    connect()
    context = ray.data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    # Silence Ray Data's warning about missing bars; our own lines also suit a job's log.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows = [{"file": file, "packed": packed} for file, packed in parts]
    parts.clear()
    reports = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        partial(_run_task, settings=settings), concurrency=workers if workers > 0 else None
    )
    rows.clear()
    try:
        with explain_lost_processes("ingest", memory_advice=_MEMORY_ADVICE):
            for row in log_silence(reports.iter_rows(), "ingest"):
                if row["error"]:
                    raise StorageError(row["error"])
                yield parse_report(json.loads(row["report"]))
    finally:
        context.enable_progress_bars = bars


def _run_task(row: dict[str, Any], *, settings: ShardSettings) -> dict[str, Any]:
    cv2.setNumThreads(1)
    try:
        report = make_shard(row["file"], row["packed"], settings)
    except StorageError as error:
        # Returned as text, because Ray would wrap the error in a traceback.
        return {"report": "", "error": str(error)}
    return {"report": json.dumps(asdict(report)), "error": ""}
