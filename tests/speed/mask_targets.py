#!/usr/bin/env python
"""Measure what the two sources of mask targets cost: ingest, feed and training step.

    python tests/speed/mask_targets.py --split ~/shards/coco/val2017

Prints medians over rounds in which both sources take turns, as other load changes times.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import tyro

from bsm.build import build_model
from jobs.coco_r50 import RECIPE
from pipeline.data.collate import collate
from pipeline.data.instance_fields import compute_squeeze_field
from pipeline.data.run_lengths import read_segmentation
from pipeline.data.schema import FIELD_SIDE

SOURCES = ("field", "roi")


def main(*, split: Path, images: int = 32, rounds: int = 5, short_edge_px: int = 320) -> None:
    """Measure a split of instances.

    Args:
        split: folder of shards.
        images: of one shard to measure.
        rounds: of which the median is taken, after one to warm up.
        short_edge_px: of images in the training step; the feed uses the recipe's sizes.
    """
    torch.set_num_threads(1)
    file = min(split.glob("part-*.parquet"))
    rows = pq.read_table(file).slice(0, images)
    objects = sum(len(each) for each in rows["rle"].to_pylist())
    print(f"{file.name}: {len(rows)} images, {objects} objects")
    _print_bytes(file)
    _print_ingest(rows, rounds=rounds)
    rows = rows.append_column("epoch", pa.array(np.zeros(len(rows), np.int64)))
    rows = rows.append_column("lane", pa.array(np.arange(len(rows)) % 2))
    _print_feed(rows, rounds=rounds)
    _print_step(rows, short_edge_px=short_edge_px, rounds=rounds)


def _print_bytes(file: Path) -> None:
    metadata = pq.ParquetFile(file).metadata
    total = sum(metadata.row_group(g).total_byte_size for g in range(metadata.num_row_groups))
    for column in ("image", "squeeze_field", "rle"):
        stored = sum(
            metadata.row_group(g).column(c).total_compressed_size
            for g in range(metadata.num_row_groups)
            for c in range(metadata.num_columns)
            if metadata.row_group(g).column(c).path_in_schema.startswith(column)
        )
        print(f"bytes     {column:14}{stored / metadata.num_rows:9.0f} per image")
    print(f"bytes     {'all, decoded':14}{total / metadata.num_rows:9.0f} per image")


def _print_ingest(rows: pa.Table, *, rounds: int) -> None:
    masks = [
        (read_segmentation({"size": [row["height"], row["width"]], "counts": rle.decode()},
                           size_hw=(row["height"], row["width"])), box)
        for row in rows.select(["height", "width", "rle", "boxes_xyxy"]).to_pylist()
        for rle, box in zip(row["rle"], row["boxes_xyxy"], strict=True)
    ]  # fmt: skip

    def make_fields(_: str) -> None:
        for mask, box in masks:
            compute_squeeze_field(mask, np.float32(box), side=FIELD_SIDE)

    seconds = _time_in_turn(make_fields, ("field",), rounds=rounds)["field"]
    print(f"ingest    field         {1e3 * seconds / len(rows):9.2f} ms per image")


def _print_feed(rows: pa.Table, *, rounds: int) -> None:
    data = RECIPE.data

    def feed(source: str) -> None:
        for start in range(0, len(rows), 2):
            collate(rows.slice(start, 2), data, seed=0, with_masks=source == "roi")

    for source, seconds in _time_in_turn(feed, SOURCES, rounds=rounds).items():
        print(f"feed      {source:14}{len(rows) / seconds:9.2f} images/s, microbatches of 2")


def _print_step(rows: pa.Table, *, short_edge_px: int, rounds: int) -> None:
    data = replace(
        RECIPE.data,
        short_edge_px=(short_edge_px,),
        test_short_edge_px=short_edge_px,
        long_edge_px=2 * short_edge_px,
    )
    config = RECIPE.model
    classes = max(max(each, default=0) for each in rows["category_index"].to_pylist()) + 1
    backbone = replace(config.backbone, weights="")
    config = replace(config, num_classes=max(classes, config.num_classes), backbone=backbone)
    batches, models = {}, {}
    for source in SOURCES:
        targets = replace(config.mask_head.targets, source=source)
        head = replace(config.mask_head, targets=targets)
        models[source] = build_model(replace(config, mask_head=head)).train()
        batch = batches[source] = collate(
            rows.slice(0, 2), data, seed=0, with_masks=source == "roi"
        )
        tensors = [each for each in batch.targets if each is not None]
        size = sum(each.nbytes for each in tensors)
        print(f"batch     {source:14}{size / 1e6:9.2f} MB of targets, 2 images")

    def step(source: str) -> None:
        batch, model = batches[source], models[source]
        losses = model(batch.images, batch.image_sizes_hw, batch.targets)
        torch.stack(list(losses.values())).sum().backward()
        model.zero_grad(set_to_none=True)

    for source, seconds in _time_in_turn(step, SOURCES, rounds=rounds).items():
        print(f"step      {source:14}{seconds:9.2f} s, 2 images of {short_edge_px} px")


def _time_in_turn(
    run: Callable[[str], None], sources: tuple[str, ...], *, rounds: int
) -> dict[str, float]:
    """Return the median time of each source."""
    seconds: dict[str, list[float]] = {source: [] for source in sources}
    for _ in range(rounds + 1):
        for source in sources:
            # Not the time of day: other processes share this machine.
            began = time.process_time()
            run(source)
            seconds[source].append(time.process_time() - began)
    return {source: statistics.median(each[1:]) for source, each in seconds.items()}


if __name__ == "__main__":
    tyro.cli(main)
