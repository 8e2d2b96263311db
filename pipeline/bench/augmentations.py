"""Measure the cost of each augmentation in the feed of instances, in images per CPU second.

The feed is that of training without Ray, from shards to batches of two. What a GPU does in training
(colors and damage) is measured here on the CPU, after the feed.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import cv2

from pipeline.bench.feeds import ingest_once
from pipeline.bench.our_feed import feed_batches, make_data_config
from pipeline.bench.report import Bar, Result, report
from pipeline.bench.timing import time_in_turn, timed
from pipeline.recipe import ColorConfig, DataConfig, RobustConfig
from pipeline.training.color_jitter import jitter_colors

_BATCH = 2
_RESIZED, _SQUARE = "short edge 800 px", "square of 1024 px"

_LARGE_SCALE = {"scale_jitter": (0.1, 2.0)}
_ON_SQUARE: dict[str, dict[str, Any]] = {
    _SQUARE: {},
    "scale jitter 0.8 to 1.25": {"scale_jitter": (0.8, 1.25)},
    "scale jitter 0.1 to 2.0": _LARGE_SCALE,
    "scale jitter 0.1 to 2.0, copy-paste": {**_LARGE_SCALE, "copy_paste": 1.0},
}
_ON_RESIZED: dict[str, dict[str, Any]] = {
    "copy-paste": {"copy_paste": 1.0},
    "color jitter": {"color": ColorConfig(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)},
    "gray": {"robust": RobustConfig(gray=1.0)},
    "blur": {"robust": RobustConfig(blur=1.0)},
    "JPEG": {"robust": RobustConfig(jpeg=1.0)},
    "cutout": {"robust": RobustConfig(cutout=1.0)},
}


def bench_augmentations(
    *, photos: str, split: str, images: int, rounds: int, print_line: Callable[[str], None]
) -> Result:
    """Time the feed of a COCO split with each augmentation on every image."""
    cv2.setNumThreads(1)
    shards = ingest_once(photos, split)
    resized = make_data_config(shards, short_edge_px=(800,), long_edge_px=1333)
    square = replace(resized, scale_jitter=(1.0, 1.0), crop_px=1024)
    configs = {
        _RESIZED: resized,
        **{name: replace(resized, **fields) for name, fields in _ON_RESIZED.items()},
        **{name: replace(square, **fields) for name, fields in _ON_SQUARE.items()},
    }
    dropped: dict[str, int] = {}

    def feed(name: str, data: DataConfig) -> int:
        count, lost = 0, 0
        for batch in feed_batches(data, images=images, batch=_BATCH):
            count += len(jitter_colors(batch).images)
            lost += 0 if batch.dropped is None else int(batch.dropped.sum())
        dropped[name] = lost
        return count

    cases = {name: timed(partial(feed, name, data)) for name, data in configs.items()}
    runs = time_in_turn(cases, rounds=rounds, print_line=print_line)
    bars = [
        *(Bar(over=name, under=_RESIZED) for name in _ON_RESIZED),
        *(Bar(over=name, under=_SQUARE) for name in _ON_SQUARE if name != _SQUARE),
    ]
    facts = {f"{name}: objects dropped": lost for name, lost in dropped.items() if lost}
    return report(
        runs, bars, rates=dict.fromkeys(cases, (images, "images")), images=images, **facts
    )
