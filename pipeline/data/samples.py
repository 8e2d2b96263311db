"""Make the samples of rows: decoded, cropped, resized and flipped images with their objects."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.data.augment import (
    ResizeFlip,
    decode_row,
    draw_train_transform,
    resize_and_flip,
)
from pipeline.data.batch import Ints, draw_transforms, read_arrays, row_sizes
from pipeline.data.objects import SampleObjects, Size, crop_objects, read_objects, resize_objects
from pipeline.data.photo import Pixels
from pipeline.recipe import DataConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """N samples before they are padded to a batch."""

    images: Sequence[Pixels]
    """(h, w, 3) RGB of each."""
    objects: SampleObjects
    """In pixels of the images; their masks in those of mask_sizes_hw."""
    transforms: Sequence[ResizeFlip]
    """From the masks to the images."""
    mask_sizes_hw: Sequence[Size]
    seeds: Ints
    """(N,)."""
    dropped: Ints
    """(N,) number of objects of each of which a crop or pasted objects left no pixel."""

    def of_images(self, first: int, stop: int) -> "Samples":
        """Return samples first to stop - 1."""
        part = slice(first, stop)
        return Samples(
            images=self.images[part],
            objects=self.objects.of_images(first, stop),
            transforms=self.transforms[part],
            mask_sizes_hw=self.mask_sizes_hw[part],
            seeds=self.seeds[part],
            dropped=self.dropped[part],
        )


def make_samples(rows: pa.Table, data: DataConfig, *, seed: int, with_masks: bool) -> Samples:
    """Make the samples of rows, before or after prepare_rows.

    Args:
        rows: of a shard, with the plan's columns `epoch` and `lane`, and `repeat` where images
            repeat within an epoch.
        data: the transforms.
        seed: of the recipe.
        with_masks: read the masks, even if no transform needs them.

    Raises:
        DatasetError: an image cannot be decoded, or its size differs from its row's.
    """
    seeds, transforms = draw_transforms(rows, draw_train_transform, data, seed=seed)
    if "pixels" in rows.column_names:
        images = read_arrays(rows, "pixels", transforms, channels=(3,))
    else:
        images = transform_images(rows, transforms)
    objects = read_objects(rows, with_patches=with_masks or data.edits_masks)
    return transform_objects(objects, row_sizes(rows), images, transforms, seeds=seeds)


def transform_objects(
    objects: SampleObjects,
    sizes_hw: Sequence[Size],
    images: Sequence[Pixels],
    transforms: Sequence[ResizeFlip],
    *,
    seeds: Ints,
) -> Samples:
    """Transform stored objects like their images.

    Args:
        objects: in stored pixels; with patches if a transform crops.
        sizes_hw: of the stored images.
        images: after their transforms.
        transforms: of the images.
        seeds: of the samples.
    """
    before = np.bincount(objects.image, minlength=len(images))
    if any(each.window_xyxy for each in transforms):
        windows = [
            each.window_xyxy or (0, 0, width, height)
            for each, (height, width) in zip(transforms, sizes_hw, strict=True)
        ]
        objects = crop_objects(objects, windows)
        sizes_hw = [(y1 - y0, x1 - x0) for x0, y0, x1, y1 in windows]
    return Samples(
        images=images,
        objects=resize_objects(objects, sizes_hw, transforms),
        transforms=transforms,
        mask_sizes_hw=sizes_hw,
        seeds=seeds,
        dropped=before - np.bincount(objects.image, minlength=len(images)),
    )


def transform_images(rows: pa.Table, transforms: Sequence[ResizeFlip]) -> list[Pixels]:
    """Decode and transform the images of rows.

    Raises:
        DatasetError: an image cannot be decoded, or its size differs from its row's.
    """
    return [
        resize_and_flip(decode_row(rows, row), transform)
        for row, transform in enumerate(transforms)
    ]
