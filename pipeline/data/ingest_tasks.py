"""Ingest's shards as Ray Data tasks: as many at once as there are CPUs, each holding one shard."""

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import cv2
import ray

from pipeline.data.manifest import ShardInfo
from pipeline.data.problems import Problem
from pipeline.data.shards import ShardReport, ShardSettings, make_shard
from pipeline.errors import StorageError
from pipeline.ray_connection import connect


def make_on_ray(
    parts: list[tuple[str, bytes]], settings: ShardSettings, *, workers: int
) -> Iterator[ShardReport]:
    """Make shards on Ray, in the order in which they finish.

    Args:
        parts: name and packed annotations of each shard.
        settings: those of the data set.
        workers: tasks at once; -1 for every CPU.
    """
    connect()
    context = ray.data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    # Ray Data warns that there are no bars; our own lines are read in a job's log too.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows = [{"file": file, "packed": packed} for file, packed in parts]
    parts.clear()
    made = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        partial(_task, settings=settings), concurrency=workers if workers > 0 else None
    )
    rows.clear()
    try:
        for row in made.iter_rows():
            yield _report(row)
    finally:
        context.enable_progress_bars = bars


def _task(row: dict[str, Any], *, settings: ShardSettings) -> dict[str, Any]:
    # One task has one CPU.
    cv2.setNumThreads(1)
    try:
        report = make_shard(row["file"], row["packed"], settings)
    except StorageError as error:
        # An error of ours crosses as words: Ray would wrap it in a traceback.
        return {"report": "", "error": str(error)}
    return {"report": json.dumps(asdict(report)), "error": ""}


def _report(row: dict[str, Any]) -> ShardReport:
    if row["error"]:
        raise StorageError(row["error"])
    plain = json.loads(row["report"])
    info = {**plain["info"], "row_groups": tuple(plain["info"]["row_groups"])}
    problems = [Problem(**each) for each in plain["problems"]]
    return ShardReport(**{**plain, "info": ShardInfo(**info), "problems": problems})
