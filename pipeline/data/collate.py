"""Collate rows of an instance shard into the tensors of one forward pass.

N images, T target slots, S side of the squeeze field, H, W padded input size
"""

from collections.abc import Sequence
from functools import partial

import cv2
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from bsm.instance.tensors import Targets
from pipeline.data.augment import decode_row, draw_train_transform, get_test_transform
from pipeline.data.batch import (
    PAD_TO_MULTIPLE_PX,
    Batch,
    Ints,
    append_arrays,
    draw_transforms,
    make_test_batch,
    make_train_batch,
    read_images,
    row_sizes,
)
from pipeline.data.objects import read_objects
from pipeline.data.photo import Pixels
from pipeline.data.samples import Samples, make_samples, transform_images, transform_objects
from pipeline.data.schema import FIELD_SIDE
from pipeline.recipe import DataConfig


def collate(rows: pa.Table, data: DataConfig, *, seed: int, with_masks: bool = False) -> Batch:
    """Make a training batch of rows, before or after prepare_rows, without copy-paste.

    Args:
        rows: of a shard, with the plan's columns `epoch` and `lane`, and `repeat` where images
            repeat within an epoch.
        data: the transforms.
        seed: of the recipe.
        with_masks: decode the masks too, for targets from each RoI's own mask.

    Raises:
        DatasetError: an image cannot be decoded, or its size differs from its row's.
    """
    samples = make_samples(rows, data, seed=seed, with_masks=with_masks)
    return collate_samples(samples, rows, data, with_masks=with_masks)


def collate_samples(
    samples: Samples, rows: pa.Table, data: DataConfig, *, with_masks: bool
) -> Batch:
    """Make a training batch of samples.

    Args:
        samples: N of them.
        rows: of the samples.
        data: gives the size of crops, and what is drawn for the device.
        with_masks: add the masks.
    """
    side = -(-data.crop_px // PAD_TO_MULTIPLE_PX) * PAD_TO_MULTIPLE_PX
    return make_train_batch(
        rows,
        samples.images,
        _make_targets(samples, with_masks=with_masks),
        seeds=samples.seeds,
        data=data,
        # Crops have one size, so that shapes never change.
        size_hw=None if data.scale_jitter is None else (side, side),
        dropped=samples.dropped if data.edits_masks else None,
    )


def prepare_rows(rows: pa.Table, data: DataConfig, *, seed: int) -> pa.Table:
    """Decode, resize and flip ahead of collate; the column `image` becomes `pixels`.

    Args:
        rows: as collate takes them.
        data: the transforms.
        seed: of the recipe.
    """
    _, transforms = draw_transforms(rows, draw_train_transform, data, seed=seed)
    images = transform_images(rows, transforms)
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
        samples = transform_objects(
            read_objects(rows, with_patches=with_masks),
            row_sizes(rows),
            images,
            [get_test_transform(size_hw, data) for size_hw in row_sizes(rows)],
            seeds=np.zeros(len(rows), dtype=np.int64),
        )
        targets = _make_targets(samples, with_masks=with_masks)
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


def _make_targets(samples: Samples, *, with_masks: bool) -> Targets:
    objects, images = samples.objects, len(samples.images)
    slot = np.arange(len(objects.image)) - np.searchsorted(objects.image, objects.image)
    index = (torch.from_numpy(objects.image), torch.from_numpy(slot))
    shape = (images, int(slot.max()) + 1 if len(slot) else 0)

    def to_slots(values: Tensor) -> Tensor:
        slots = values.new_zeros((*shape, *values.shape[1:]))
        slots[index] = values
        return slots

    masks = mask_scale_xy = None
    if with_masks:
        masks, scale_xy = _paint_masks(samples, slot, shape=shape)
        mask_scale_xy = to_slots(scale_xy[objects.image])
    return Targets(
        boxes_xyxy=to_slots(objects.boxes_xyxy),
        category_index=to_slots(objects.category_index),
        valid=to_slots(torch.ones(len(slot), dtype=torch.bool)),
        squeeze_field=to_slots(objects.squeeze_field),
        field_frame_xyxy=to_slots(objects.frames_xyxy),
        sample_seed=torch.from_numpy(samples.seeds.copy()),
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


def _paint_masks(samples: Samples, slot: Ints, *, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Paint masks, flipped but not resized to the input: that would cost them their outlines.

    Only a mask of at least twice the input's size is reduced, by a whole factor, to save memory.

    Returns:
        (N, T, h, w) uint8, and their pixels per pixel of the input, (N, 2) as (x, y).
    """
    objects, transforms = samples.objects, samples.transforms
    sizes = []
    for (height, width), transform in zip(samples.mask_sizes_hw, transforms, strict=True):
        factor = max(1, min(height // transform.height_px, width // transform.width_px))
        sizes.append((-(-height // factor), -(-width // factor)))
    masks = np.zeros((*shape, *np.max(sizes, axis=0)), dtype=np.uint8)
    for patch, image, place in zip(objects.patches, objects.image, slot, strict=True):
        height, width = sizes[image]
        painted = masks[image, place, :height, :width]
        if transforms[image].flipped:
            painted = painted[:, ::-1]
        stored = samples.mask_sizes_hw[image]
        mask = painted if stored == sizes[image] else np.zeros(stored, dtype=np.uint8)
        x0, y0, x1, y1 = patch.box_xyxy
        mask[y0:y1, x0:x1] = patch.pixels
        if mask is not painted:
            share = cv2.resize(255 * mask, (width, height), interpolation=cv2.INTER_AREA)
            painted[...] = share >= 128
    scale_xy = [
        (width / transform.width_px, height / transform.height_px)
        for (height, width), transform in zip(sizes, transforms, strict=True)
    ]
    return torch.from_numpy(masks), torch.tensor(scale_xy, dtype=torch.float32)
