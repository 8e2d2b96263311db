"""Collate rows of a semantic shard into the tensors of one forward pass.

N images, H, W side of the crop
"""

from collections.abc import Sequence
from functools import partial

import pyarrow as pa
import torch

from bsm.semantic.field import SemanticTargets
from pipeline.data.augment import decode_row
from pipeline.data.augment_semantic import (
    Crop,
    Plane,
    crop_image,
    crop_plane,
    draw_crop,
    get_test_transform,
)
from pipeline.data.batch import (
    Batch,
    append_arrays,
    draw_transforms,
    make_test_batch,
    make_train_batch,
    pad_planes,
    read_arrays,
    read_images,
    row_sizes,
)
from pipeline.data.photo import Pixels
from pipeline.data.schema import PLANES
from pipeline.data.semantic_fields import VOID, decode_plane
from pipeline.errors import DatasetError
from pipeline.recipe import DataConfig


def collate(rows: pa.Table, data: DataConfig, *, seed: int) -> Batch:
    """Make a training batch of rows, before or after prepare_rows.

    Every image is padded to the crop size with void, so that shapes never change.

    Args:
        rows: of a shard, with the plan's columns `epoch` and `lane`, and `repeat` where images
            repeat within an epoch.
        data: the transforms.
        seed: of the recipe.

    Raises:
        DatasetError: an image or map cannot be decoded, or its size differs from its row's.
    """
    seeds, crops = draw_transforms(rows, draw_crop, data, seed=seed)
    if "pixels" in rows.column_names:
        transforms = [crop.transform for crop in crops]
        images = read_arrays(rows, "pixels", transforms, channels=(3,))
        planes = {name: read_arrays(rows, name, transforms) for name in PLANES}
    else:
        images, planes = _crop_images(rows, crops), _crop_planes(rows, crops)
    size_hw = (data.crop_px, data.crop_px)
    targets = SemanticTargets(
        **{name: pad_planes(planes[name], size_hw=size_hw, value=VOID) for name in PLANES},
        zoom=torch.tensor([crop.zoom for crop in crops], dtype=torch.float32),
        sample_seed=torch.from_numpy(seeds.copy()),
    )
    return make_train_batch(rows, images, targets, seeds=seeds, data=data, size_hw=size_hw)


def prepare_rows(rows: pa.Table, data: DataConfig, *, seed: int) -> pa.Table:
    """Decode, crop, resize and flip ahead of collate.

    The column `image` becomes `pixels`, and the maps are decoded in their columns.

    Args:
        rows: as collate takes them.
        data: the transforms.
        seed: of the recipe.
    """
    _, crops = draw_transforms(rows, draw_crop, data, seed=seed)
    arrays = {"pixels": _crop_images(rows, crops), **_crop_planes(rows, crops)}
    return append_arrays(rows.drop_columns(["image", *PLANES]), arrays)


def collate_for_test(rows: pa.Table, data: DataConfig) -> Batch:
    """Make an evaluation batch of rows: whole images, no flip.

    Args:
        rows: of a shard.
        data: the transforms.

    Raises:
        DatasetError: an image cannot be decoded, or its size differs from its row's.
    """
    images = [decode_row(rows, row) for row in range(len(rows))]
    get_transform = partial(get_test_transform, data=data)
    return make_test_batch(images, get_transform, _empty_targets(len(rows)), rows=rows)


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


def decode_label(rows: pa.Table, row: int) -> Plane:
    """Decode the label map (H, W) of a row.

    Raises:
        DatasetError: the map cannot be decoded, or its size differs from the row's.
    """
    return _decode_plane(rows, "label", row)


def decode_planes(rows: pa.Table, row: int) -> dict[str, Plane]:
    """Decode all maps (H, W) of a row, by name.

    Raises:
        DatasetError: a map cannot be decoded, or its size differs from the row's.
    """
    return {name: _decode_plane(rows, name, row) for name in PLANES}


def _empty_targets(images: int) -> SemanticTargets:
    return SemanticTargets(
        **dict.fromkeys(PLANES, torch.zeros(images, 0, 0, dtype=torch.uint8)),
        zoom=torch.ones(images),
        sample_seed=torch.zeros(images, dtype=torch.int64),
    )


def _crop_images(rows: pa.Table, crops: Sequence[Crop]) -> list[Pixels]:
    return [crop_image(decode_row(rows, row), crop) for row, crop in enumerate(crops)]


def _crop_planes(rows: pa.Table, crops: Sequence[Crop]) -> dict[str, list[Plane]]:
    return {
        name: [crop_plane(_decode_plane(rows, name, row), crop) for row, crop in enumerate(crops)]
        for name in PLANES
    }


def _decode_plane(rows: pa.Table, name: str, row: int) -> Plane:
    plane = decode_plane(rows[name][row].as_buffer())
    size_hw = row_sizes(rows.slice(row, 1))[0]
    if plane is None or plane.shape != size_hw:
        found = "cannot be decoded" if plane is None else f"has (height, width) {plane.shape}"
        raise DatasetError(
            f"image {rows['image_id'][row]}: its map {name} {found}, its row says {size_hw}; "
            "ingest the split again"
        )
    return plane
