"""The training feed of this project without Ray, as benchmarks read it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.data.batch import Batch
from pipeline.data.stream import local_batches
from pipeline.recipe import DataConfig


def make_data_config(shards: Path, **fields: Any) -> DataConfig:  # noqa: ANN401  any field
    """Configure data that is read from one folder of shards."""
    return DataConfig(
        root=str(shards.parent), train_split=shards.name, val_split=shards.name, **fields
    )


def feed_batches(
    data: DataConfig, *, images: int, batch: int, with_masks: bool = False
) -> Iterator[Batch]:
    """Yield batches of a number of images."""
    steps = local_batches(
        f"{data.root}/{data.train_split}",
        data,
        seed=0,
        global_batch=batch,
        images_per_microbatch=batch,
        first_step=0,
        stop_step=images // batch,
        with_masks=with_masks,
    )
    for step in steps:
        yield from step.microbatches
