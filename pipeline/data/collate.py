"""Collate rows of an instance shard into the tensors of one forward pass.

N images, T target slots, S side of the squeeze field, H, W padded input size
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from bsm.field import boxes_to_frames
from bsm.instance.tensors import Targets
from pipeline.data.augment import (
    ResizeFlip,
    decode_row,
    draw_train_transform,
    get_test_transform,
    resize_and_flip,
)
from pipeline.data.batch import (
    Batch,
    Ints,
    append_arrays,
    draw_transforms,
    make_test_batch,
    make_train_batch,
    read_arrays,
    read_images,
    row_sizes,
)
from pipeline.data.photo import Pixels
from pipeline.data.schema import FIELD_SIDE
from pipeline.recipe import DataConfig


class _Objects(NamedTuple):
    """The objects of all rows, concatenated, without crowds."""

    row: Ints
    """Index of each object's image."""
    slot: Ints
    """Index of each object within its image."""
    kept: NDArray[np.bool_]
    """For each annotation, whether it is an object."""


def collate(rows: pa.Table, data: DataConfig, *, seed: int, with_masks: bool = False) -> Batch:
    """Make a training batch of rows, before or after prepare_rows.

    Args:
        rows: of a shard, with the plan's columns `epoch` and `lane`, and `repeat` where images
            repeat within an epoch.
        data: the transforms.
        seed: of the recipe.
        with_masks: decode the masks too, for targets from each RoI's own mask.

    Raises:
        DatasetError: an image cannot be decoded, or its size differs from its row's.
    """
    seeds, transforms = draw_transforms(rows, draw_train_transform, data, seed=seed)
    if "pixels" in rows.column_names:
        images = read_arrays(rows, "pixels", transforms, channels=(3,))
    else:
        images = _transform_images(rows, transforms)
    targets = _make_targets(rows, transforms, seeds=seeds, with_masks=with_masks)
    return make_train_batch(rows, images, targets, seeds=seeds, data=data)


def prepare_rows(rows: pa.Table, data: DataConfig, *, seed: int) -> pa.Table:
    """Decode, resize and flip ahead of collate; the column `image` becomes `pixels`.

    Args:
        rows: as collate takes them.
        data: the transforms.
        seed: of the recipe.
    """
    _, transforms = draw_transforms(rows, draw_train_transform, data, seed=seed)
    images = _transform_images(rows, transforms)
    return append_arrays(rows.drop_columns(["image"]), {"pixels": images})


def collate_for_test(
    rows: pa.Table, data: DataConfig, *, with_targets: bool = False, with_masks: bool = False
) -> Batch:
    """Make an evaluation batch of rows: fixed size, no flip.

    Args:
        rows: of a shard.
        data: the transforms.
        with_targets: include the objects of the images, in order, without crowds.
        with_masks: decode their masks too.

    Raises:
        DatasetError: an image cannot be decoded, or its size differs from its row's.
    """
    images = [decode_row(rows, row) for row in range(len(rows))]
    targets = _empty_targets(len(rows))
    if with_targets:
        transforms = [get_test_transform(size_hw, data) for size_hw in row_sizes(rows)]
        no_seeds = np.zeros(len(rows), dtype=np.int64)
        targets = _make_targets(rows, transforms, seeds=no_seeds, with_masks=with_masks)
    return make_test_batch(images, partial(get_test_transform, data=data), targets, rows=rows)


def collate_images(images: Sequence[bytes | Pixels], data: DataConfig) -> Batch:
    """Make an evaluation batch of encoded files or arrays; image_id counts from 0.

    Args:
        images: as augment.read_pixels takes them.
        data: the transforms.

    Raises:
        DatasetError: an image cannot be decoded or converted.
    """
    get_transform = partial(get_test_transform, data=data)
    return make_test_batch(read_images(images), get_transform, _empty_targets(len(images)))


def _transform_images(rows: pa.Table, transforms: Sequence[ResizeFlip]) -> list[Pixels]:
    return [
        resize_and_flip(decode_row(rows, row), transform)
        for row, transform in enumerate(transforms)
    ]


def _make_targets(
    rows: pa.Table,
    transforms: Sequence[ResizeFlip],
    *,
    seeds: Ints,
    with_masks: bool = False,
) -> Targets:
    objects = _find_objects(rows)
    index = (torch.from_numpy(objects.row), torch.from_numpy(objects.slot))
    shape = (len(transforms), int(objects.slot.max()) + 1 if len(objects.slot) else 0)

    def to_slots(values: Tensor) -> Tensor:
        slots = values.new_zeros((*shape, *values.shape[1:]))
        slots[index] = values
        return slots

    stored = _flatten(rows, "boxes_xyxy").flatten().to_numpy().reshape(-1, 4)
    stored = torch.from_numpy(stored[objects.kept])
    frames = _transform_boxes(boxes_to_frames(stored), rows, transforms, objects.row)
    boxes = _transform_boxes(stored, rows, transforms, objects.row)
    # A flipped box is reordered to x0 < x1; a flipped frame is not: its field is read backward.
    boxes = torch.cat(
        [torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:])], 1
    )
    category_index = _flatten(rows, "category_index").to_numpy()[objects.kept].astype(np.int64)
    masks = mask_scale_xy = None
    if with_masks:
        masks, scale_xy = _decode_masks(rows, transforms, objects, shape=shape)
        mask_scale_xy = to_slots(scale_xy[objects.row])
    return Targets(
        boxes_xyxy=to_slots(boxes),
        category_index=to_slots(torch.from_numpy(category_index)),
        valid=to_slots(torch.ones(len(boxes), dtype=torch.bool)),
        squeeze_field=to_slots(_read_fields(rows, objects)),
        field_frame_xyxy=to_slots(frames),
        sample_seed=torch.from_numpy(seeds.copy()),
        masks=masks,
        mask_scale_xy=mask_scale_xy,
    )


def _empty_targets(images: int) -> Targets:
    return Targets(
        boxes_xyxy=torch.zeros(images, 0, 4),
        category_index=torch.zeros(images, 0, dtype=torch.int64),
        valid=torch.zeros(images, 0, dtype=torch.bool),
        squeeze_field=torch.zeros(images, 0, FIELD_SIDE, FIELD_SIDE, dtype=torch.int8),
        field_frame_xyxy=torch.zeros(images, 0, 4),
        sample_seed=torch.zeros(images, dtype=torch.int64),
    )


def _find_objects(rows: pa.Table) -> _Objects:
    kept = ~_flatten(rows, "is_crowd").to_numpy(zero_copy_only=False).astype(bool)
    counts = pc.list_value_length(rows["is_crowd"]).to_numpy().astype(np.int64)
    row = np.repeat(np.arange(len(counts)), counts)[kept]
    first = np.searchsorted(row, row, side="left")
    return _Objects(row=row, slot=np.arange(len(row)) - first, kept=kept)


def _transform_boxes(
    boxes_xyxy: Tensor, rows: pa.Table, transforms: Sequence[ResizeFlip], row: Ints
) -> Tensor:
    """Scale and flip the boxes of objects; a flipped box has x0 > x1."""
    scale_xy = torch.tensor(
        [
            (transform.width_px / width, transform.height_px / height)
            for transform, (height, width) in zip(transforms, row_sizes(rows), strict=True)
        ],
        dtype=torch.float32,
    )
    scaled = boxes_xyxy * scale_xy[row].repeat(1, 2)
    width_px = torch.tensor([each.width_px for each in transforms])[row]
    is_flipped = torch.tensor([each.flipped for each in transforms])[row]
    flipped = scaled.clone()
    flipped[:, 0::2] = width_px[:, None] - scaled[:, 0::2]
    return torch.where(is_flipped[:, None], flipped, scaled)


def _read_fields(rows: pa.Table, objects: _Objects) -> Tensor:
    """Read the squeeze fields (objects, S, S) without a copy of each in Python."""
    fields = _flatten(rows, "squeeze_field")
    width = fields.type.byte_width
    side = math.isqrt(width)
    raw = np.frombuffer(fields.buffers()[1] or b"", dtype=np.int8)
    raw = raw[fields.offset * width : (fields.offset + len(fields)) * width]
    return torch.from_numpy(raw.reshape(-1, side, side)[objects.kept])


def _decode_masks(
    rows: pa.Table, transforms: Sequence[ResizeFlip], objects: _Objects, *, shape: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Decode masks, flipped but not resized to the input: that would cost them their outlines.

    Only a mask of at least twice the input's size is reduced, by a whole factor, to save memory.

    Returns:
        (N, T, h, w) uint8, and their pixels per pixel of the input, (N, 2) as (x, y).
    """
    rles = [rle for rle, kept in zip(_flatten(rows, "rle"), objects.kept, strict=True) if kept]
    stored = row_sizes(rows)
    sizes = []
    for (height, width), transform in zip(stored, transforms, strict=True):
        factor = max(1, min(height // transform.height_px, width // transform.width_px))
        sizes.append((-(-height // factor), -(-width // factor)))
    masks = np.zeros((*shape, *np.max(sizes, axis=0)), dtype=np.uint8)
    for rle, row, slot in zip(rles, objects.row, objects.slot, strict=True):
        mask = coco_mask.decode({"size": list(stored[row]), "counts": rle.as_py()})
        height, width = sizes[row]
        if (height, width) != stored[row]:
            share = cv2.resize(255 * mask, (width, height), interpolation=cv2.INTER_AREA)
            mask = (share >= 128).astype(np.uint8)
        masks[row, slot, :height, :width] = mask[:, ::-1] if transforms[row].flipped else mask
    scale_xy = [
        (width / transform.width_px, height / transform.height_px)
        for (height, width), transform in zip(sizes, transforms, strict=True)
    ]
    return torch.from_numpy(masks), torch.tensor(scale_xy, dtype=torch.float32)


def _flatten(rows: pa.Table, column: str) -> pa.Array:
    """Concatenate the lists of a column."""
    return rows[column].combine_chunks().flatten()
