"""Plan millions of rows in a process of its own, and print times and growth of memory as JSON.

    python -m pipeline.bench.scale_probe plan ROWS
    python -m pipeline.bench.scale_probe samples ROWS

No image is read: the rows exist only in a manifest, or in the list of trained samples.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.bench.timing import cpu_seconds, read_peak_mb

_BATCH, _ROW_GROUP, _ROW_GROUPS_PER_SHARD = 16, 32, 32
_STEPS_PER_LIST = 1000
"""Steps between two checkpoints, and in a file of the list of samples."""


def _plan(rows: int) -> dict[str, float]:
    """Read a manifest, make the first item of a run, and the item in which an epoch ends."""
    from pipeline.data import manifest as manifests  # noqa: PLC0415
    from pipeline.data.read_rows import make_plan  # noqa: PLC0415

    per_shard = _ROW_GROUP * _ROW_GROUPS_PER_SHARD
    shards = tuple(
        manifests.ShardInfo(
            file=f"part-{index:05d}.parquet",
            rows=per_shard,
            row_groups=(_ROW_GROUP,) * _ROW_GROUPS_PER_SHARD,
        )
        for index in range(rows // per_shard)
    )
    category = manifests.Category(category_id=1, category_index=0, name="object")
    manifest = manifests.Manifest(
        categories=(category,),
        shards=shards,
        images=len(shards) * per_shard,
        annotations=0,
        fingerprint="synthetic",
    )
    with tempfile.TemporaryDirectory() as folder:
        manifests.write_manifest(folder, manifest)
        del manifest, shards
        before_mb, clock = read_peak_mb(), _Clock()
        manifest = manifests.read_manifest(folder)
        read_s = clock.lap()
        plan = make_plan(folder, manifest, seed=0, global_batch=_BATCH, repeat_threshold=0)
        next(plan.items(0, 1000))
        first_s = clock.lap()
        turn = plan.rows // _BATCH
        next(plan.items(turn - 2, turn + 2))
        grown_mb = read_peak_mb() - before_mb
        return {"read_s": read_s, "first_s": first_s, "turn_s": clock.lap(), "grown_mb": grown_mb}


def _samples(rows: int) -> dict[str, float]:
    """Join the lists of trained samples of one epoch."""
    import numpy as np  # noqa: PLC0415

    from pipeline.training.sample_log import merge_sample_lists, samples_uri  # noqa: PLC0415

    steps = rows // _BATCH
    with tempfile.TemporaryDirectory() as run:
        folder = Path(samples_uri(run))
        folder.mkdir()
        for first in range(0, steps, _STEPS_PER_LIST):
            stop = min(first + _STEPS_PER_LIST, steps)
            order = np.arange(first * _BATCH, stop * _BATCH)
            table = zip(order // _BATCH, order * 0, order % _BATCH, order, strict=True)
            lines = "".join(f"{a},{b},{c},{d}\n" for a, b, c, d in table)
            file = folder / f"steps-{first:08d}-{stop:08d}.csv"
            file.write_text(f"step,epoch,lane,image_id\n{lines}")
        before_mb, clock = read_peak_mb(), _Clock()
        merge_sample_lists(run, steps=steps, global_batch=_BATCH)
        return {"merge_s": clock.lap(), "grown_mb": read_peak_mb() - before_mb}


class _Clock:
    def __init__(self) -> None:
        self._started_s = time.perf_counter()

    def lap(self) -> float:
        before, self._started_s = self._started_s, time.perf_counter()
        return self._started_s - before


PARTS: dict[str, Callable[[int], dict[str, float]]] = {"plan": _plan, "samples": _samples}


if __name__ == "__main__":
    answer = PARTS[sys.argv[1]](int(sys.argv[2]))
    answer["cpu_s"] = cpu_seconds()
    print("\n" + json.dumps(answer))  # noqa: T201
