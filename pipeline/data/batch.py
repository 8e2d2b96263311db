"""The images of one forward pass with their targets, for instance and semantic models.

N images, H, W padded input size
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from bsm.instance.tensors import Targets
from bsm.semantic.field import SemanticTargets
from pipeline.data.augment import (
    ResizeFlip,
    draw_color_jitter,
    read_pixels,
    resize_and_flip,
)
from pipeline.data.photo import Pixels
from pipeline.data.photo_damage import PhotoDamage, draw_damage
from pipeline.data.seeds import sample_seeds
from pipeline.recipe import DataConfig

PAD_TO_MULTIPLE_PX = 32
"""Stride of the coarsest pyramid level that features come from (detectron2)."""

AnyTargets: TypeAlias = Targets | SemanticTargets
Transform = TypeVar("Transform")

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Batch:
    """The images of one forward pass and their targets."""

    images: Tensor
    """(N, 3, H, W) uint8 RGB, padded below and to the right with zeros."""
    image_sizes_hw: Tensor
    """(N, 2) int64: size of each image without its padding."""
    targets: AnyTargets
    """Empty in evaluation: no target slot, or maps without pixels."""
    image_id: Tensor
    """(N,) int64; stays on the CPU."""
    original_sizes_hw: Tensor
    """(N, 2) int64: size of each stored image; stays on the CPU."""
    lanes: Tensor
    """(N,) int64: position in the global batch; stays on the CPU."""
    colors: Tensor | None = None
    """(N, 4) float32: color jitter of each image (augment.draw_color_jitter)."""
    damage: tuple[PhotoDamage, ...] | None = None
    """How each image is damaged on the device; stays on the CPU."""
    dropped: Tensor | None = None
    """(N,) int64: objects of each image that a crop or pasted objects hide, if the recipe has
    either; stays on the CPU."""

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> "Batch":
        """Move the tensors that a model needs to a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """Copy the tensors that a model needs to pinned memory, for asynchronous transfers."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        targets: dict[str, Any] = {
            name: None if tensor is None else function(tensor)
            for name, tensor in self.targets._asdict().items()
        }
        return replace(
            self,
            images=function(self.images),
            image_sizes_hw=function(self.image_sizes_hw),
            targets=self.targets._replace(**targets),
            colors=None if self.colors is None else function(self.colors),
        )


def make_train_batch(
    rows: pa.Table,
    images: Sequence[Pixels],
    targets: AnyTargets,
    *,
    seeds: Ints,
    data: DataConfig,
    size_hw: tuple[int, int] | None = None,
    dropped: Ints | None = None,
) -> Batch:
    """Make a training batch of transformed images.

    Args:
        rows: the rows of the images, with the plan's column `lane`.
        images: (h, w, 3) RGB.
        targets: of the images.
        seeds: of the samples.
        data: gives the color jitter and the damage.
        size_hw: padded size; None takes pad_size.
        dropped: (N,) objects that have no target because no pixel of them is left.
    """
    return Batch(
        images=pad_images(images, size_hw=size_hw or pad_size(images)),
        image_sizes_hw=_sizes_hw(images),
        targets=targets,
        image_id=_int64(rows, "image_id"),
        original_sizes_hw=torch.tensor(row_sizes(rows), dtype=torch.int64),
        lanes=_int64(rows, "lane"),
        colors=draw_color_jitter(seeds, data.color),
        damage=draw_damage(seeds, [image.shape[:2] for image in images], data.robust),
        dropped=None if dropped is None else torch.from_numpy(dropped),
    )


def make_test_batch(
    images: Sequence[Pixels],
    get_transform: Callable[[tuple[int, int]], ResizeFlip],
    targets: AnyTargets,
    *,
    rows: pa.Table | None = None,
) -> Batch:
    """Resize images and make an evaluation batch.

    Args:
        images: (h, w, 3) RGB as stored.
        get_transform: transform of a stored size.
        targets: of the images.
        rows: the rows of the images; without, image_id counts from 0.
    """
    resized = [
        resize_and_flip(image, get_transform((image.shape[0], image.shape[1]))) for image in images
    ]
    positions = torch.arange(len(images))
    return Batch(
        images=pad_images(resized, size_hw=pad_size(resized)),
        image_sizes_hw=_sizes_hw(resized),
        targets=targets,
        image_id=positions if rows is None else _int64(rows, "image_id"),
        original_sizes_hw=_sizes_hw(images),
        lanes=positions,
    )


def read_images(images: Sequence[bytes | Pixels]) -> list[Pixels]:
    """Convert encoded files or arrays to RGB (see augment.read_pixels)."""
    return [
        read_pixels(image, name=f"image {index} of the list") for index, image in enumerate(images)
    ]


def pad_size(images: Sequence[Pixels]) -> tuple[int, int]:
    """Return the smallest height and width that hold all images and are multiples of 32."""
    height, width = (
        -(-max(image.shape[axis] for image in images) // PAD_TO_MULTIPLE_PX) * PAD_TO_MULTIPLE_PX
        for axis in (0, 1)
    )
    return height, width


def pad_images(images: Sequence[Pixels], *, size_hw: tuple[int, int]) -> Tensor:
    """Pad images (h, w, 3) below and to the right with zeros and stack them to (N, 3, H, W)."""
    return pad_planes([image.transpose(2, 0, 1) for image in images], size_hw=size_hw, value=0)


def pad_planes(planes: Sequence[Pixels], *, size_hw: tuple[int, int], value: int) -> Tensor:
    """Pad arrays (..., h, w) below and to the right and stack them to (N, ..., H, W)."""
    stacked = np.empty((len(planes), *planes[0].shape[:-2], *size_hw), dtype=np.uint8)
    for place, plane in zip(stacked, planes, strict=True):
        height, width = plane.shape[-2:]
        place[..., :height, :width] = plane
        # Only the padding: filling all of it first takes as long as the copy.
        place[..., height:, :] = value
        place[..., :height, width:] = value
    return torch.from_numpy(stacked)


def row_sizes(rows: pa.Table) -> list[tuple[int, int]]:
    """Return the height and width of each row's image, as stored."""
    return list(zip(rows["height"].to_pylist(), rows["width"].to_pylist(), strict=True))


def row_seeds(rows: pa.Table, seed: int) -> Ints:
    """Return the seed of each row's sample.

    Args:
        rows: with the plan's column `epoch`, and `repeat` where images repeat within an epoch.
        seed: of the recipe.
    """
    repeats = rows["repeat"].to_numpy() if "repeat" in rows.column_names else 0
    epochs, image_ids = rows["epoch"].to_numpy(), rows["image_id"].to_numpy()
    return sample_seeds(seed, epochs=epochs, image_ids=image_ids, repeats=repeats)


def draw_transforms(
    rows: pa.Table, draw: Callable[..., Transform], data: DataConfig, *, seed: int
) -> tuple[Ints, list[Transform]]:
    """Draw the transform of each row's sample; return the samples' seeds, too."""
    seeds = row_seeds(rows, seed)
    return seeds, [
        draw(size_hw, data, sample_seed=int(sample_seed))
        for size_hw, sample_seed in zip(row_sizes(rows), seeds, strict=True)
    ]


def append_arrays(rows: pa.Table, arrays: Mapping[str, Sequence[Pixels]]) -> pa.Table:
    """Append columns of arrays, as raw bytes."""
    for name, column in arrays.items():
        raw = pa.array([array.tobytes() for array in column], type=pa.binary())
        rows = rows.append_column(name, raw)
    return rows


def read_arrays(
    rows: pa.Table, name: str, transforms: Iterable[ResizeFlip], *, channels: tuple[int, ...] = ()
) -> list[Pixels]:
    """Read a column that append_arrays wrote, of the transforms' output sizes."""
    return [
        np.frombuffer(rows[name][row].as_buffer(), np.uint8).reshape(
            transform.height_px, transform.width_px, *channels
        )
        for row, transform in enumerate(transforms)
    ]


def _sizes_hw(images: Sequence[Pixels]) -> Tensor:
    return torch.tensor([image.shape[:2] for image in images], dtype=torch.int64)


def _int64(rows: pa.Table, column: str) -> Tensor:
    return torch.from_numpy(rows[column].to_numpy().astype(np.int64))
