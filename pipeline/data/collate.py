"""From rows of an instance shard to the dense tensors of one forward pass.

N images, T target slots, S side of the squeeze field, H, W padded input size
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from bsm.field import field_frame_xyxy
from bsm.instance.tensors import Targets
from pipeline.data.augment import (
    Geometry,
    Pixels,
    decoded,
    decoded_row,
    drawn_colors,
    evaluation_geometry,
    laid,
    prepare_image,
    train_geometry,
)
from pipeline.data.batch import (
    Batch,
    Ints,
    int64,
    original_sizes,
    padded,
    row_sizes,
    seeds_of,
    sizes_of,
)
from pipeline.data.schema import FIELD_SIDE
from pipeline.recipe import DataConfig


class _Objects(NamedTuple):
    """The objects of all rows, one after another, crowds left out."""

    row: Ints
    """Which image each belongs to."""
    slot: Ints
    """Its place among the objects of its image."""
    kept: NDArray[np.bool_]
    """Which of the annotations it is."""


def collate(rows: pa.Table, data: DataConfig, *, seed: int, with_masks: bool = False) -> Batch:
    """Make a training batch of rows, decoding those that prepare_rows has not.

    Args:
        rows: rows of a shard with the plan's columns `epoch` and `lane`, and with `repeat` where
            an image may come several times an epoch.
        data: how an image is prepared.
        seed: the recipe's.
        with_masks: decode the masks too, for targets made on each RoI's own mask.

    Raises:
        DatasetError: an image cannot be decoded, or is not of the size that its row says.
    """
    seeds, geometries = _drawn(rows, data, seed)
    laid_out = (
        _as_pixels(rows, geometries)
        if "pixels" in rows.column_names
        else _decoded_and_laid(rows, geometries)
    )
    images = padded(laid_out)
    return Batch(
        images=images,
        image_sizes_hw=sizes_of(laid_out),
        targets=_targets(
            rows, geometries, seeds=seeds, mask_size_hw=images.shape[2:] if with_masks else None
        ),
        image_id=int64(rows, "image_id"),
        original_sizes_hw=original_sizes(rows),
        lanes=int64(rows, "lane"),
        colors=drawn_colors(seeds, data.color),
    )


def prepare_rows(rows: pa.Table, data: DataConfig, *, seed: int) -> pa.Table:
    """Decode, resize and flip in place of collate: the column `image` becomes `pixels`.

    Args:
        rows: as collate takes them.
        data: how an image is prepared.
        seed: the recipe's.
    """
    images = _decoded_and_laid(rows, _drawn(rows, data, seed)[1])
    pixels = pa.array([image.tobytes() for image in images], type=pa.binary())
    return rows.drop_columns(["image"]).append_column("pixels", pixels)


def collate_for_test(rows: pa.Table, data: DataConfig, *, with_targets: bool = False) -> Batch:
    """Make an evaluation batch of rows: the fixed size, no flip.

    Args:
        rows: rows of a shard.
        data: how an image is prepared.
        with_targets: with the objects of the images, crowds left out, in their order.

    Raises:
        DatasetError: an image cannot be decoded, or is not of the size that its row says.
    """
    geometries = [evaluation_geometry(size_hw, data) for size_hw in row_sizes(rows)]
    batch = _without_targets(
        _decoded_and_laid(rows, geometries),
        image_id=int64(rows, "image_id"),
        original_sizes_hw=original_sizes(rows),
    )
    if not with_targets:
        return batch
    nothing_drawn = np.zeros(len(rows), dtype=np.int64)
    return replace(
        batch, targets=_targets(rows, geometries, seeds=nothing_drawn, mask_size_hw=None)
    )


def collate_images(images: Sequence[bytes | Pixels], data: DataConfig) -> Batch:
    """Make an evaluation batch of encoded files or arrays; image_id counts from 0.

    Args:
        images: what prepare_image takes.
        data: how an image is prepared.

    Raises:
        DatasetError: an image cannot be decoded, or is no array of pixels.
    """
    originals, prepared = [], []
    for index, image in enumerate(images):
        name = f"image {index} of the list"
        pixels = decoded(image, name=name) if isinstance(image, bytes) else image
        originals.append(pixels.shape[:2])
        prepared.append(prepare_image(pixels, data, name=name))
    return _without_targets(
        prepared,
        image_id=torch.arange(len(prepared)),
        original_sizes_hw=torch.tensor(originals, dtype=torch.int64).reshape(-1, 2),
    )


def _drawn(rows: pa.Table, data: DataConfig, seed: int) -> tuple[Ints, list[Geometry]]:
    seeds = seeds_of(rows, seed)
    return seeds, [
        train_geometry(size_hw, data, sample_seed=int(sample_seed))
        for size_hw, sample_seed in zip(row_sizes(rows), seeds, strict=True)
    ]


def _decoded_and_laid(rows: pa.Table, geometries: list[Geometry]) -> list[Pixels]:
    return [laid(decoded_row(rows, row), geometry) for row, geometry in enumerate(geometries)]


def _as_pixels(rows: pa.Table, geometries: list[Geometry]) -> list[Pixels]:
    return [
        np.frombuffer(rows["pixels"][row].as_buffer(), np.uint8).reshape(
            geometry.height_px, geometry.width_px, 3
        )
        for row, geometry in enumerate(geometries)
    ]


def _targets(
    rows: pa.Table,
    geometries: list[Geometry],
    *,
    seeds: Ints,
    mask_size_hw: Sequence[int] | None,
) -> Targets:
    objects = _objects(rows)
    at = (torch.from_numpy(objects.row), torch.from_numpy(objects.slot))
    shape = (len(geometries), int(objects.slot.max()) + 1 if len(objects.slot) else 0)
    boxes = torch.from_numpy(_flat(rows, "boxes_xyxy").flatten().to_numpy().reshape(-1, 4).copy())
    boxes = boxes[torch.from_numpy(objects.kept)]
    placed = _Placement.of(rows, geometries, objects.row)
    frames = placed.moved(field_frame_xyxy(boxes))
    moved = placed.moved(boxes)
    # A mirrored box is turned back to x0 < x1; a mirrored frame is not: its field is read backward.
    moved = torch.cat(
        [torch.minimum(moved[:, :2], moved[:, 2:]), torch.maximum(moved[:, :2], moved[:, 2:])], 1
    )
    category_index = _flat(rows, "category_index").to_numpy()[objects.kept].astype(np.int64)
    return Targets(
        boxes_xyxy=_filled(torch.zeros(*shape, 4), at, moved),
        category_index=_filled(
            torch.zeros(shape, dtype=torch.int64), at, torch.from_numpy(category_index)
        ),
        valid=_filled(
            torch.zeros(shape, dtype=torch.bool), at, torch.ones(len(moved), dtype=torch.bool)
        ),
        squeeze_field=_fields(rows, objects, at, shape),
        field_frame_xyxy=_filled(torch.zeros(*shape, 4), at, frames),
        sample_seed=torch.from_numpy(seeds.copy()),
        masks=None
        if mask_size_hw is None
        else _masks(rows, geometries, objects, shape=(*shape, *mask_size_hw)),
    )


class _Placement(NamedTuple):
    """How each object's coordinates go from the stored image to the input."""

    scale_xy: Tensor
    width_px: Tensor
    flipped: Tensor

    @classmethod
    def of(cls, rows: pa.Table, geometries: list[Geometry], row: Ints) -> "_Placement":
        scales = [
            (geometry.width_px / width, geometry.height_px / height)
            for geometry, (height, width) in zip(geometries, row_sizes(rows), strict=True)
        ]
        return cls(
            scale_xy=torch.tensor(scales, dtype=torch.float32)[row],
            width_px=torch.tensor([each.width_px for each in geometries])[row],
            flipped=torch.tensor([each.flipped for each in geometries])[row],
        )

    def moved(self, boxes_xyxy: Tensor) -> Tensor:
        """Scale and mirror; mirrored boxes have x0 > x1."""
        scaled = boxes_xyxy * self.scale_xy.repeat(1, 2)
        mirrored = scaled.clone()
        mirrored[:, 0::2] = self.width_px[:, None] - scaled[:, 0::2]
        return torch.where(self.flipped[:, None], mirrored, scaled)


def _objects(rows: pa.Table) -> _Objects:
    kept = ~_flat(rows, "is_crowd").to_numpy(zero_copy_only=False).astype(bool)
    counts = pc.list_value_length(rows["is_crowd"]).to_numpy().astype(np.int64)
    row = np.repeat(np.arange(len(counts)), counts)[kept]
    first = np.searchsorted(row, row, side="left")
    return _Objects(row=row, slot=np.arange(len(row)) - first, kept=kept)


def _fields(
    rows: pa.Table, objects: _Objects, at: tuple[Tensor, Tensor], shape: tuple[int, int]
) -> Tensor:
    flat = _flat(rows, "squeeze_field")
    width = flat.type.byte_width
    side = math.isqrt(width)
    raw = np.frombuffer(flat.buffers()[1] or b"", dtype=np.int8)
    raw = raw[flat.offset * width : (flat.offset + len(flat)) * width].reshape(-1, side, side)
    empty = torch.zeros((*shape, side or FIELD_SIDE, side or FIELD_SIDE), dtype=torch.int8)
    return _filled(empty, at, torch.from_numpy(raw[objects.kept]))


def _masks(
    rows: pa.Table, geometries: list[Geometry], objects: _Objects, *, shape: tuple[int, ...]
) -> Tensor:
    """Decode the masks, resize them to the nearest pixel and flip them."""
    rles = [rle for rle, kept in zip(_flat(rows, "rle"), objects.kept, strict=True) if kept]
    sizes = row_sizes(rows)
    masks = np.zeros(shape, dtype=np.uint8)
    for rle, row, slot in zip(rles, objects.row, objects.slot, strict=True):
        geometry = geometries[row]
        mask = coco_mask.decode({"size": list(sizes[row]), "counts": rle.as_py()})
        mask = cv2.resize(
            mask, (geometry.width_px, geometry.height_px), interpolation=cv2.INTER_NEAREST_EXACT
        )
        masks[row, slot, : geometry.height_px, : geometry.width_px] = (
            mask[:, ::-1] if geometry.flipped else mask
        )
    return torch.from_numpy(masks)


def _without_targets(
    images: Sequence[Pixels], *, image_id: Tensor, original_sizes_hw: Tensor
) -> Batch:
    N = len(images)
    return Batch(
        images=padded(images),
        image_sizes_hw=sizes_of(images),
        targets=Targets(
            boxes_xyxy=torch.zeros(N, 0, 4),
            category_index=torch.zeros(N, 0, dtype=torch.int64),
            valid=torch.zeros(N, 0, dtype=torch.bool),
            squeeze_field=torch.zeros(N, 0, FIELD_SIDE, FIELD_SIDE, dtype=torch.int8),
            field_frame_xyxy=torch.zeros(N, 0, 4),
            sample_seed=torch.zeros(N, dtype=torch.int64),
        ),
        image_id=image_id,
        original_sizes_hw=original_sizes_hw,
        lanes=torch.arange(N),
    )


def _filled(empty: Tensor, at: tuple[Tensor, Tensor], values: Tensor) -> Tensor:
    empty[at] = values
    return empty


def _flat(rows: pa.Table, column: str) -> pa.Array:
    """Join the lists of a column."""
    return rows[column].combine_chunks().flatten()
