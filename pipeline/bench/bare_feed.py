"""A bare feed: it reads shards in their order, decodes, resizes, flips and stacks, and no more."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bsm.field import boxes_to_frames
from bsm.instance.tensors import Targets
from pipeline.data.batch import PAD_TO_MULTIPLE_PX, Batch
from pipeline.data.schema import FIELD_SIDE

_COLUMNS = ["image_id", "image", "boxes_xyxy", "category_index", "squeeze_field"]


class _Sample(NamedTuple):
    pixels: NDArray[np.uint8]
    boxes_xyxy: Tensor
    category_index: Tensor
    fields: Tensor
    image_id: int


def bare_batches(
    shards: Path,
    *,
    batch: int,
    short_edge_px: int,
    long_edge_px: int,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """Yield batches without end, of the files of a rank."""
    rows = _read_rows(sorted(shards.glob("part-*.parquet"))[rank::world_size])
    while True:
        yield _stack([_prepare(next(rows), short_edge_px, long_edge_px) for _ in range(batch)])


def _read_rows(files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    while True:
        for file in files:
            shard = pq.ParquetFile(file)
            for part in shard.iter_batches(batch_size=4, columns=_COLUMNS, use_threads=False):
                yield from part.to_pylist()


def _prepare(row: dict[str, Any], short_edge_px: int, long_edge_px: int) -> _Sample:
    pixels: Any = cv2.imdecode(np.frombuffer(row["image"], np.uint8), cv2.IMREAD_COLOR_RGB)
    height, width = pixels.shape[:2]
    scale = min(short_edge_px / min(height, width), long_edge_px / max(height, width))
    size = (round(scale * height), round(scale * width))
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    image = F.interpolate(image, size, mode="bilinear", antialias=True)
    boxes = scale * torch.tensor(row["boxes_xyxy"], dtype=torch.float32).view(-1, 4)
    # Mirrored, as every second image of training.
    boxes[:, [0, 2]] = size[1] - boxes[:, [2, 0]]
    raw = np.frombuffer(b"".join(row["squeeze_field"]), np.int8)
    return _Sample(
        pixels=image[0].permute(1, 2, 0).numpy()[:, ::-1],
        boxes_xyxy=boxes,
        category_index=torch.tensor(row["category_index"], dtype=torch.int64),
        fields=torch.from_numpy(raw.copy()).view(-1, FIELD_SIDE, FIELD_SIDE),
        image_id=row["image_id"],
    )


def _stack(samples: Sequence[_Sample]) -> Batch:
    count, slots = len(samples), max(len(each.boxes_xyxy) for each in samples)
    padded = (
        -(-max(each.pixels.shape[axis] for each in samples) // PAD_TO_MULTIPLE_PX)
        * PAD_TO_MULTIPLE_PX
        for axis in (0, 1)
    )
    images = np.zeros((count, 3, *padded), np.uint8)
    boxes = torch.zeros(count, slots, 4)
    category = torch.zeros(count, slots, dtype=torch.int64)
    valid = torch.zeros(count, slots, dtype=torch.bool)
    fields = torch.zeros(count, slots, FIELD_SIDE, FIELD_SIDE, dtype=torch.int8)
    for index, each in enumerate(samples):
        images[index, :, : each.pixels.shape[0], : each.pixels.shape[1]] = each.pixels.transpose(
            2, 0, 1
        )
        used = slice(len(each.boxes_xyxy))
        boxes[index, used], category[index, used] = each.boxes_xyxy, each.category_index
        valid[index, used], fields[index, used] = True, each.fields
    frames = boxes_to_frames(boxes)
    ids = torch.tensor([each.image_id for each in samples])
    sizes = torch.tensor([each.pixels.shape[:2] for each in samples])
    targets = Targets(boxes, category, valid, fields, frames[..., [2, 1, 0, 3]], ids)
    return Batch(torch.from_numpy(images), sizes, targets, ids, sizes, torch.arange(count))
