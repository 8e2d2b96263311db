"""Feed training with instances: ours beside torchvision's transforms in a torch DataLoader.

Every feed gives the same photos, resized to 800 px and flipped at random, in batches of two. The
DataLoader has one worker process and ours has its threads, so compare CPU seconds. The DataLoader
does what torchvision's references do: a COCO dataset with transforms v2 of image, boxes and masks.
"""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import pyarrow.parquet as pq
import torch

from pipeline.bench.bare_feed import bare_batches
from pipeline.bench.our_feed import feed_batches, make_data_config
from pipeline.bench.peers import cache_folder
from pipeline.bench.report import Bar, Result, report
from pipeline.bench.timing import time_in_turn, timed
from pipeline.data.ingest import ingest_dataset
from pipeline.data.ingest_config import CocoIngest

_BATCH = 2
_SHORT_EDGE_PX, _LONG_EDGE_PX = 800, 1333
_PIECES = ("image", "squeeze_field", "rle")


def bench_feed(
    *, photos: str, split: str, images: int, rounds: int, print_line: Callable[[str], None]
) -> Result:
    """Time feeds of a COCO split, ours with the squeeze field or with whole masks."""
    cv2.setNumThreads(1)
    shards = ingest_once(photos, split)
    data = make_data_config(shards, short_edge_px=(_SHORT_EDGE_PX,), long_edge_px=_LONG_EDGE_PX)

    target_mb: dict[str, float] = {}

    def feed(*, with_masks: bool) -> int:
        count = 0
        for batch in feed_batches(data, images=images, batch=_BATCH, with_masks=with_masks):
            count += len(batch.images)
            size = sum(each.nbytes for each in batch.targets if each is not None)
            name = "whole masks" if with_masks else "field"
            target_mb[name] = max(target_mb.get(name, 0.0), size / 1e6)
        return count

    cases = {
        "torchvision": timed(lambda: _feed_torchvision(photos, split, images)),
        "bare loop": timed(lambda: _feed_bare(shards, images)),
        "ours, field": timed(lambda: feed(with_masks=False)),
        "ours, whole masks": timed(lambda: feed(with_masks=True)),
    }
    runs = time_in_turn(cases, rounds=rounds, print_line=print_line)
    bars = [
        Bar(over="torchvision", under="ours, field", at_least=2),
        Bar(over="torchvision", under="ours, whole masks", at_least=2),
        Bar(over="bare loop", under="ours, field", at_least=0.9),
    ]
    rates = dict.fromkeys(cases, (images, "images"))
    memory = {f"{name}: MB of a batch's targets": round(mb, 1) for name, mb in target_mb.items()}
    return report(runs, bars, rates=rates, images=images, **memory, **_stored_bytes(shards))


def ingest_once(photos: str, split: str, *, name: str = "") -> Path:
    """Ingest a COCO split into the cache; valid shards that are there are kept."""
    out = cache_folder() / f"shards-{name or split}"
    ingest_dataset(CocoIngest(root=photos, split=split, out=str(out), on_bad="drop", workers=0))
    return out


def _stored_bytes(shards: Path) -> dict[str, int]:
    """Return the compressed bytes of an image in the shards, by column."""
    totals, rows = dict.fromkeys(_PIECES, 0), 0
    for file in shards.glob("part-*.parquet"):
        metadata = pq.ParquetFile(file).metadata
        rows += metadata.num_rows
        for group in range(metadata.num_row_groups):
            for column in range(metadata.num_columns):
                chunk = metadata.row_group(group).column(column)
                name = chunk.path_in_schema.split(".")[0]
                if name in totals:
                    totals[name] += chunk.total_compressed_size
    return {f"{name}: bytes per image": total // rows for name, total in totals.items()}


def _feed_torchvision(photos: str, split: str, images: int) -> int:
    from torch.utils.data import DataLoader, Subset  # noqa: PLC0415
    from torchvision import datasets  # noqa: PLC0415
    from torchvision.transforms import v2  # noqa: PLC0415

    transforms = v2.Compose(
        [
            v2.PILToTensor(),
            v2.RandomShortestSize(min_size=_SHORT_EDGE_PX, max_size=_LONG_EDGE_PX),
            v2.RandomHorizontalFlip(0.5),
            v2.ToDtype(torch.float, scale=True),
            v2.ConvertBoundingBoxFormat("XYXY"),
            v2.SanitizeBoundingBoxes(),
            v2.ToPureTensor(),
        ]
    )
    root = Path(photos)
    coco: Any = datasets.CocoDetection(
        str(root / split), str(root / "annotations" / f"instances_{split}.json")
    )
    coco.ids = [key for key in coco.ids if coco.coco.getAnnIds(key)]
    dataset = datasets.wrap_dataset_for_transforms_v2(
        _with_transforms(coco, transforms), target_keys=["boxes", "labels", "masks"]
    )
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0)).tolist()
    loader = DataLoader(
        Subset(dataset, (order * -(-images // len(order)))[:images]),
        batch_size=_BATCH,
        num_workers=1,
        collate_fn=_to_tuples,
    )
    return sum(len(batch[0]) for batch in loader)


def _with_transforms(dataset: Any, transforms: Any) -> Any:  # noqa: ANN401  torchvision's own
    dataset.transforms = transforms
    return dataset


def _to_tuples(batch: list[Any]) -> tuple[Any, ...]:
    return tuple(zip(*batch, strict=True))


def _feed_bare(shards: Path, images: int) -> int:
    """Decode, resize and collate the rows of shards as they come, with our libraries."""
    batches = bare_batches(
        shards, batch=_BATCH, short_edge_px=_SHORT_EDGE_PX, long_edge_px=_LONG_EDGE_PX
    )
    return sum(len(each.images) for each in islice(batches, images // _BATCH))
