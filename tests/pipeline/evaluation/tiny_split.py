"""A split of drawn ellipses, and a model that predicts its truth.

The color of an image is its index in the split, so that the model can look up the truth after any
resize.
"""

from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pycocotools import mask as mask_api
from torch import Tensor, nn

from bsm.instance.tensors import Detections
from pipeline.data.manifest import Category, Manifest, ShardInfo, write_manifest
from pipeline.data.schema import FIELD_SIDE, INSTANCE_SCHEMA

FIRST_ID = 500
CATEGORY_IDS = (3, 17, 90)
SIZE_HW = (96, 128)
MASK_SIDE = 112


def write_split(folder: Path, *, row_groups: tuple[tuple[int, ...], ...] = ((8, 5), (7,))) -> str:
    """Write shards with row groups of the given lengths, with image ids in descending order."""
    folder.mkdir(parents=True)
    num_images = sum(map(sum, row_groups))
    index, shards = num_images - 1, []
    for number, lengths in enumerate(row_groups):
        file = f"part-{number:05d}.parquet"
        with pq.ParquetWriter(folder / file, INSTANCE_SCHEMA) as writer:
            for length in lengths:
                rows = [make_row(index - k) for k in range(length)]
                index -= length
                table = pa.Table.from_pylist(rows, schema=INSTANCE_SCHEMA)
                writer.write_table(table, row_group_size=length)
        shards.append(ShardInfo(file=file, rows=sum(lengths), row_groups=lengths))
    write_manifest(
        str(folder),
        Manifest(
            categories=tuple(
                Category(category_id=key, category_index=index, name=f"kind{key}")
                for index, key in enumerate(CATEGORY_IDS)
            ),
            shards=tuple(shards),
            images=num_images,
            annotations=sum(len(draw_objects(k)) for k in range(num_images)),
            fingerprint="tiny",
        ),
    )
    return str(folder)


def draw_objects(index: int) -> list[tuple[int, np.ndarray]]:
    """Draw the objects of an image (category_index, mask); every fourth image has none."""
    rng = np.random.default_rng(index)
    found = []
    for number in range(index % 4):
        mask = np.zeros(SIZE_HW, np.uint8)
        center = int(rng.integers(30, 98)), int(rng.integers(30, 66))
        axes = int(rng.integers(14, 28)), int(rng.integers(14, 28))
        cv2.ellipse(mask, center, axes, 0, 0, 360, 1, -1)
        found.append(((index + number) % len(CATEGORY_IDS), mask))
    return found


def compute_box(mask: np.ndarray) -> list[int]:
    y, x = np.nonzero(mask)
    return [int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1]


def make_row(index: int) -> dict:
    objects = draw_objects(index)
    pixels = np.full((*SIZE_HW, 3), index, np.uint8)
    masks = [mask for _, mask in objects]
    return {
        "image_id": FIRST_ID + index,
        "file_name": f"{index}.png",
        "height": SIZE_HW[0],
        "width": SIZE_HW[1],
        "image": cv2.imencode(".png", pixels)[1].tobytes(),
        "annotation_id": list(range(len(masks))),
        "boxes_xyxy": [compute_box(mask) for mask in masks],
        "category_index": [index for index, _ in objects],
        "is_crowd": [False] * len(masks),
        "area_px": [float(mask.sum()) for mask in masks],
        "rle": [mask_api.encode(np.asfortranarray(mask))["counts"] for mask in masks],
        "squeeze_field": [bytes(FIELD_SIDE**2)] * len(masks),
    }


class ExactModel(nn.Module):
    """Predicts the truth, optionally shifted to the right by some original pixels."""

    def __init__(self, *, shift_px: float = 0, category_offset: int = 0) -> None:
        super().__init__()
        self.shift_px, self.category_offset = shift_px, category_offset
        self.seen: list[int] = []

    def forward(self, images: Tensor, image_sizes_hw: Tensor) -> Detections:
        assert not self.training
        found = [self._detect_one(*each) for each in zip(images, image_sizes_hw, strict=True)]
        return Detections(*(torch.stack(each) for each in zip(*found, strict=True)))

    def predict_masks(
        self, images: Tensor, image_sizes_hw: Tensor, boxes_xyxy: Tensor, category_index: Tensor
    ) -> Tensor:
        """Return the true masks of the given boxes, which must be the true ones."""
        known = self(images, image_sizes_hw)
        slots = boxes_xyxy.shape[1]
        moved = torch.tensor([self.shift_px, 0, self.shift_px, 0])
        moved = moved * (image_sizes_hw[0, 1] / SIZE_HW[1])
        for found, asked, index in zip(known.boxes_xyxy, boxes_xyxy, category_index, strict=True):
            real = asked.any(dim=1)
            assert torch.allclose(found[:slots][real] - moved, asked[real], atol=1e-3)
            assert index.shape == (slots,)
        return known.mask_probs[:, :slots].roll(round(self.shift_px), dims=-1)

    def _detect_one(self, image: Tensor, size_hw: Tensor) -> tuple[Tensor, ...]:
        index = int(image[0, 0, 0])
        self.seen.append(index)
        slots = 5
        boxes, scores = torch.zeros(slots, 4), torch.zeros(slots)
        indices = torch.zeros(slots, dtype=torch.int64)
        valid = torch.zeros(slots, dtype=torch.bool)
        probs = torch.zeros(slots, MASK_SIDE, MASK_SIDE)
        scale = size_hw.flip(0).repeat(2) / torch.tensor(SIZE_HW).flip(0).repeat(2)
        for slot, (category, mask) in enumerate(draw_objects(index)):
            box = compute_box(mask)
            crop = mask[box[1] : box[3], box[0] : box[2]].astype(np.float32)
            probs[slot] = torch.from_numpy(
                cv2.resize(crop, (MASK_SIDE, MASK_SIDE), interpolation=cv2.INTER_NEAREST)
            )
            shift = torch.tensor([self.shift_px, 0, self.shift_px, 0])
            boxes[slot] = (torch.tensor(box) + shift) * scale
            scores[slot], valid[slot] = 0.9 - 0.1 * slot, True
            indices[slot] = category + self.category_offset
        return boxes, scores, indices, valid, probs
