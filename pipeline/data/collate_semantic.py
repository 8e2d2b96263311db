"""From rows of a semantic shard to the dense tensors of one forward pass.

N images, H, W side of the crop
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from bsm.semantic.field import SemanticTargets
from pipeline.data.augment import Pixels, decoded, decoded_row, drawn_colors, laid, rgb
from pipeline.data.augment_semantic import (
    Plane,
    Window,
    cut,
    cut_plane,
    evaluation_geometry,
    train_window,
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
from pipeline.data.schema import PLANES
from pipeline.data.semantic_fields import VOID, decode_plane
from pipeline.errors import DatasetError
from pipeline.recipe import DataConfig


def collate(rows: pa.Table, data: DataConfig, *, seed: int) -> Batch:
    """Make a training batch of rows, decoding those that prepare_rows has not.

    Every image is as large as the crop, so that shapes never change; what is beyond a smaller one
    is void.

    Args:
        rows: rows of a shard with the plan's columns `epoch` and `lane`, and with `repeat` where
            an image may come several times an epoch.
        data: how an image is prepared.
        seed: the recipe's.

    Raises:
        DatasetError: an image or map cannot be decoded, or is not of the size that its row says.
    """
    seeds, windows = _drawn(rows, data, seed)
    if "pixels" in rows.column_names:
        images = [_raw(rows, "pixels", row, window, 3) for row, window in enumerate(windows)]
        planes = {
            name: [_raw(rows, name, row, window, 1)[..., 0] for row, window in enumerate(windows)]
            for name in PLANES
        }
    else:
        images = _cut_images(rows, windows)
        planes = {name: _cut_planes(rows, name, windows) for name in PLANES}
    size_hw = (data.crop_px, data.crop_px)
    return Batch(
        images=padded(images, size_hw=size_hw),
        image_sizes_hw=sizes_of(images),
        targets=SemanticTargets(
            **{name: _padded_planes(planes[name], size_hw=size_hw) for name in PLANES},
            zoom=torch.tensor([window.zoom for window in windows], dtype=torch.float32),
            sample_seed=torch.from_numpy(seeds.copy()),
        ),
        image_id=int64(rows, "image_id"),
        original_sizes_hw=original_sizes(rows),
        lanes=int64(rows, "lane"),
        colors=drawn_colors(seeds, data.color),
    )


def prepare_rows(rows: pa.Table, data: DataConfig, *, seed: int) -> pa.Table:
    """Decode, resize, crop and flip in place of collate.

    The column `image` becomes `pixels`, and those of the maps hold pixels too.

    Args:
        rows: as collate takes them.
        data: how an image is prepared.
        seed: the recipe's.
    """
    windows = _drawn(rows, data, seed)[1]
    columns = {"pixels": _cut_images(rows, windows)}
    columns |= {name: _cut_planes(rows, name, windows) for name in PLANES}
    rows = rows.drop_columns(["image", *PLANES])
    for name, arrays in columns.items():
        rows = rows.append_column(name, pa.array([a.tobytes() for a in arrays], type=pa.binary()))
    return rows


def collate_for_test(rows: pa.Table, data: DataConfig) -> Batch:
    """Make an evaluation batch of rows: whole images, no flip.

    Args:
        rows: rows of a shard.
        data: how an image is prepared.

    Raises:
        DatasetError: an image cannot be decoded, or is not of the size that its row says.
    """
    images = [decoded_row(rows, row) for row in range(len(rows))]
    return _for_test(images, data, image_id=int64(rows, "image_id"))


def collate_images(images: Sequence[bytes | Pixels], data: DataConfig) -> Batch:
    """Make an evaluation batch of encoded files or arrays; image_id counts from 0.

    Args:
        images: encoded files, or uint8 pixels as augment.rgb takes them.
        data: how an image is prepared.

    Raises:
        DatasetError: an image cannot be decoded, or is no array of pixels.
    """
    names = [f"image {index} of the list" for index in range(len(images))]
    pixels = [
        decoded(image, name=name) if isinstance(image, bytes) else rgb(image, name=name)
        for image, name in zip(images, names, strict=True)
    ]
    return _for_test(pixels, data, image_id=torch.arange(len(pixels)))


def decoded_label(rows: pa.Table, row: int) -> Plane:
    """Decode the label map (H, W) of a row.

    Raises:
        DatasetError: it cannot be decoded, or is not of the size that its row says.
    """
    return _decoded_plane(rows, "label", row)


def _for_test(images: Sequence[Pixels], data: DataConfig, *, image_id: Tensor) -> Batch:
    size_hw = [(image.shape[0], image.shape[1]) for image in images]
    laid_out = [
        laid(image, evaluation_geometry(size, data))
        for image, size in zip(images, size_hw, strict=True)
    ]
    N = len(images)
    nothing = torch.zeros(N, 0, 0, dtype=torch.uint8)
    return Batch(
        images=padded(laid_out),
        image_sizes_hw=sizes_of(laid_out),
        targets=SemanticTargets(
            **dict.fromkeys(PLANES, nothing),
            zoom=torch.ones(N),
            sample_seed=torch.zeros(N, dtype=torch.int64),
        ),
        image_id=image_id,
        original_sizes_hw=torch.tensor(size_hw, dtype=torch.int64).reshape(-1, 2),
        lanes=torch.arange(N),
    )


def _drawn(rows: pa.Table, data: DataConfig, seed: int) -> tuple[Ints, list[Window]]:
    seeds = seeds_of(rows, seed)
    return seeds, [
        train_window(size_hw, data, sample_seed=int(sample_seed))
        for size_hw, sample_seed in zip(row_sizes(rows), seeds, strict=True)
    ]


def _cut_images(rows: pa.Table, windows: Sequence[Window]) -> list[Pixels]:
    return [cut(decoded_row(rows, row), window) for row, window in enumerate(windows)]


def _cut_planes(rows: pa.Table, name: str, windows: Sequence[Window]) -> list[Plane]:
    return [
        cut_plane(_decoded_plane(rows, name, row), window) for row, window in enumerate(windows)
    ]


def _decoded_plane(rows: pa.Table, name: str, row: int) -> Plane:
    plane = decode_plane(rows[name][row].as_buffer())
    size_hw = row_sizes(rows.slice(row, 1))[0]
    if plane is None or plane.shape != size_hw:
        found = "cannot be decoded" if plane is None else f"has (height, width) {plane.shape}"
        raise DatasetError(
            f"image {rows['image_id'][row]}: its map {name} {found}, its row says {size_hw}; "
            "ingest the split again"
        )
    return plane


def _raw(rows: pa.Table, name: str, row: int, window: Window, channels: int) -> Pixels:
    """Read what prepare_rows wrote."""
    shape = (window.geometry.height_px, window.geometry.width_px, channels)
    return np.frombuffer(rows[name][row].as_buffer(), np.uint8).reshape(shape)


def _padded_planes(planes: Sequence[Plane], *, size_hw: tuple[int, int]) -> Tensor:
    joined = np.full((len(planes), *size_hw), VOID, dtype=np.uint8)
    for row, plane in enumerate(planes):
        joined[row, : plane.shape[0], : plane.shape[1]] = plane
    return torch.from_numpy(joined)
