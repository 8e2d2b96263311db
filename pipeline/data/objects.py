"""The objects of some images on their way from a shard to a batch.

A crop may cut an object. Its box and squeeze field are then computed again from what is left of its
mask, so they are those that ingest would store for the cropped image. All others keep theirs.

n objects, S side of the squeeze field
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from bsm.field import boxes_to_frames
from pipeline.data.augment import ResizeFlip
from pipeline.data.mask_patches import (
    Patch,
    WindowXyxy,
    crop_patch,
    decode_patch,
    measure_field,
)

Ints = NDArray[np.int64]
Size = tuple[int, int]


class SampleObjects(NamedTuple):
    """The objects of some images without crowds, in the order of images and annotations."""

    image: Ints
    """(n,) index of each object's image."""
    boxes_xyxy: Tensor
    """(n, 4) float32."""
    frames_xyxy: Tensor
    """(n, 4) float32: the frames of the fields; x0 > x1 where one is mirrored."""
    category_index: Tensor
    """(n,) int64."""
    squeeze_field: Tensor
    """(n, S, S) int8."""
    patches: tuple[Patch, ...] = ()
    """The masks, if they were read. resize_objects leaves them as they are stored."""

    def of_images(self, first: int, stop: int) -> "SampleObjects":
        """Return the objects of images first to stop - 1, which count from 0 then."""
        low, high = np.searchsorted(self.image, (first, stop))
        part = self.take(np.arange(low, high))
        return part._replace(image=part.image - first)

    def take(self, index: Ints) -> "SampleObjects":
        """Return some objects."""
        at = torch.from_numpy(index)
        return SampleObjects(
            image=self.image[index],
            boxes_xyxy=self.boxes_xyxy[at],
            frames_xyxy=self.frames_xyxy[at],
            category_index=self.category_index[at],
            squeeze_field=self.squeeze_field[at],
            patches=tuple(self.patches[each] for each in index) if self.patches else (),
        )

    @classmethod
    def concatenate(cls, parts: Sequence["SampleObjects"]) -> "SampleObjects":
        """Join the objects of images that follow one another."""
        return cls(
            image=np.concatenate([each.image for each in parts]),
            boxes_xyxy=torch.cat([each.boxes_xyxy for each in parts]),
            frames_xyxy=torch.cat([each.frames_xyxy for each in parts]),
            category_index=torch.cat([each.category_index for each in parts]),
            squeeze_field=torch.cat([each.squeeze_field for each in parts]),
            patches=tuple(patch for each in parts for patch in each.patches),
        )


def read_objects(rows: pa.Table, *, with_patches: bool) -> SampleObjects:
    """Read the objects of rows, in stored pixels."""
    kept = ~flatten(rows, "is_crowd").to_numpy(zero_copy_only=False).astype(bool)
    counts = pc.list_value_length(rows["is_crowd"]).to_numpy().astype(np.int64)
    row = np.repeat(np.arange(len(counts)), counts)[kept]
    boxes = flatten(rows, "boxes_xyxy").flatten().to_numpy().reshape(-1, 4)
    boxes_xyxy = torch.from_numpy(boxes[kept])
    category = flatten(rows, "category_index").to_numpy()[kept].astype(np.int64)
    patches: tuple[Patch, ...] = ()
    if with_patches:
        sizes = list(zip(rows["height"].to_pylist(), rows["width"].to_pylist(), strict=True))
        counts_of = flatten(rows, "rle").filter(pa.array(kept)).to_pylist()
        patches = tuple(
            decode_patch(each, sizes[image]) for each, image in zip(counts_of, row, strict=True)
        )
    return SampleObjects(
        image=row,
        boxes_xyxy=boxes_xyxy,
        frames_xyxy=boxes_to_frames(boxes_xyxy),
        category_index=torch.from_numpy(category),
        squeeze_field=_read_fields(rows, kept),
        patches=patches,
    )


def crop_objects(objects: SampleObjects, windows: Sequence[WindowXyxy]) -> SampleObjects:
    """Crop the objects of images to a window of each image; those outside are dropped.

    Args:
        objects: in stored pixels, with patches.
        windows: one for each image.
    """
    boxes, frames = objects.boxes_xyxy.clone(), objects.frames_xyxy.clone()
    fields, patches, kept = objects.squeeze_field.clone(), list(objects.patches), []
    for index, (image, patch) in enumerate(zip(objects.image, objects.patches, strict=True)):
        window = windows[image]
        rest = crop_patch(patch, window)
        if rest is None:
            continue
        kept.append(index)
        patches[index] = rest
        if rest.pixels.shape != patch.pixels.shape:
            boxes[index], frames[index], fields[index] = measure_patch(rest)
            continue
        frames[index] -= boxes.new_tensor((window[0], window[1]) * 2)
        boxes[index] -= boxes.new_tensor((window[0], window[1]) * 2)
        # Drawn boxes may be larger than their masks.
        sides = (window[2] - window[0], window[3] - window[1])
        boxes[index] = boxes[index].clamp(min=0).minimum(boxes.new_tensor(sides * 2))
    cropped = SampleObjects(
        objects.image, boxes, frames, objects.category_index, fields, tuple(patches)
    )
    return cropped.take(np.array(kept, dtype=np.int64))


def measure_patch(patch: Patch) -> tuple[Tensor, Tensor, Tensor]:
    """Measure the box, the frame and the squeeze field of a mask, as ingest does."""
    box_xyxy = torch.tensor(patch.box_xyxy, dtype=torch.float32)
    return box_xyxy, boxes_to_frames(box_xyxy), torch.from_numpy(measure_field(patch))


def resize_objects(
    objects: SampleObjects, sizes_hw: Sequence[Size], transforms: Sequence[ResizeFlip]
) -> SampleObjects:
    """Scale and flip boxes and frames with their images; masks stay as they are.

    Args:
        objects: in stored pixels of the part that is resized.
        sizes_hw: of these parts.
        transforms: of the images.
    """
    frames = _resize_boxes(objects.frames_xyxy, objects.image, sizes_hw, transforms)
    boxes = _resize_boxes(objects.boxes_xyxy, objects.image, sizes_hw, transforms)
    # A flipped box is reordered to x0 < x1; a flipped frame is not: its field is read backward.
    boxes = torch.cat(
        [torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:])], 1
    )
    return objects._replace(boxes_xyxy=boxes, frames_xyxy=frames)


def _resize_boxes(
    boxes_xyxy: Tensor, image: Ints, sizes_hw: Sequence[Size], transforms: Sequence[ResizeFlip]
) -> Tensor:
    """Scale and flip the boxes of objects; a flipped box has x0 > x1."""
    scale_xy = torch.tensor(
        [
            (transform.width_px / width, transform.height_px / height)
            for transform, (height, width) in zip(transforms, sizes_hw, strict=True)
        ],
        dtype=torch.float32,
    )
    scaled = boxes_xyxy * scale_xy[image].repeat(1, 2)
    width_px = torch.tensor([each.width_px for each in transforms])[image]
    is_flipped = torch.tensor([each.flipped for each in transforms])[image]
    flipped = scaled.clone()
    flipped[:, 0::2] = width_px[:, None] - scaled[:, 0::2]
    return torch.where(is_flipped[:, None], flipped, scaled)


def _read_fields(rows: pa.Table, kept: NDArray[np.bool_]) -> Tensor:
    """Read the squeeze fields (n, S, S) without a copy of each in Python."""
    fields = flatten(rows, "squeeze_field")
    width = fields.type.byte_width
    side = math.isqrt(width)
    raw = np.frombuffer(fields.buffers()[1] or b"", dtype=np.int8)
    raw = raw[fields.offset * width : (fields.offset + len(fields)) * width]
    return torch.from_numpy(raw.reshape(-1, side, side)[kept])


def flatten(rows: pa.Table, column: str) -> pa.Array:
    """Concatenate the lists of a column."""
    return rows[column].combine_chunks().flatten()
