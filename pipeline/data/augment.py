"""From an encoded image to the pixels that a model sees: decode, resize by the short edge, flip.

What is drawn for a sample is a function of its seed alone (pipeline/data/seeds.py), so its pixels
are the same on every worker and after every resume. Pixels stay uint8 RGB; the model normalizes.
"""

from typing import NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from pipeline.data.seeds import mixed, uniform
from pipeline.errors import DatasetError
from pipeline.recipe import ColorConfig, DataConfig

Pixels = NDArray[np.uint8]

# What a draw is for; part of its hash. pipeline/data/augment_semantic.py has others.
_SHORT_EDGE, _FLIP, _COLORS = 1, 2, (11, 12, 13, 14)

# The pixels as they are stored: annotations are made on them, so EXIF orientation is not applied.
# Gray, CMYK and palette images become RGB, alpha is dropped, 16 bits are cut to 8.
_DECODE = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


class Geometry(NamedTuple):
    """How an image is laid into the input."""

    height_px: int
    width_px: int
    flipped: bool


def train_geometry(size_hw: tuple[int, int], data: DataConfig, *, sample_seed: int) -> Geometry:
    """Draw the short edge and the flip of a sample.

    Args:
        size_hw: size of the image as stored.
        data: what to draw from.
        sample_seed: from seeds.sample_seeds.
    """
    edges = data.short_edge_px
    short_edge_px = edges[int(mixed(sample_seed, _SHORT_EDGE)[0] % np.uint64(len(edges)))]
    flipped = is_flipped(data, sample_seed=sample_seed)
    height_px, width_px = _fitted(size_hw, short_edge_px, data.long_edge_px)
    return Geometry(height_px, width_px, flipped)


def is_flipped(data: DataConfig, *, sample_seed: int) -> bool:
    """Draw whether a sample is mirrored."""
    return float(uniform(mixed(sample_seed, _FLIP))[0]) < data.flip_probability


def drawn_colors(seeds: NDArray[np.int64], color: ColorConfig) -> torch.Tensor | None:
    """Draw by how much the colors of samples change.

    Args:
        seeds: (N,) from seeds.sample_seeds.
        color: what to draw from.

    Returns:
        (N, 4) float32: factors of brightness, contrast and saturation, and the turn of the hue as a
        share of the circle; None where nothing changes.
    """
    if not color.is_on:
        return None
    reach = (color.brightness, color.contrast, color.saturation, color.hue)
    middle = (1.0, 1.0, 1.0, 0.0)
    columns = [
        center + most * (2 * uniform(mixed(seeds, purpose)) - 1)
        for center, most, purpose in zip(middle, reach, _COLORS, strict=True)
    ]
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))


def evaluation_geometry(size_hw: tuple[int, int], data: DataConfig) -> Geometry:
    """Give the one geometry of evaluation and inference."""
    height_px, width_px = _fitted(size_hw, data.test_short_edge_px, data.long_edge_px)
    return Geometry(height_px, width_px, flipped=False)


def decoded(image: bytes | memoryview, *, name: str) -> Pixels:
    """Decode an image file to (H, W, 3) RGB.

    Args:
        image: the encoded file.
        name: what to call it in an error.

    Raises:
        DatasetError: it is no image that can be decoded.
    """
    encoded = np.frombuffer(image, dtype=np.uint8)
    pixels = cv2.imdecode(encoded, _DECODE) if len(encoded) else None
    if pixels is None:
        raise DatasetError(
            f"{name} cannot be decoded as an image ({len(encoded)} bytes); "
            "replace or remove the file"
        )
    return np.asarray(pixels, dtype=np.uint8)


def decoded_row(rows: pa.Table, row: int) -> Pixels:
    """Decode the image of a row of a shard.

    Raises:
        DatasetError: it cannot be decoded, or is not of the size that the row says.
    """
    name = f"image {rows['image_id'][row]}"
    pixels = decoded(memoryview(rows["image"][row].as_buffer()), name=name)
    size_hw = rows["height"][row].as_py(), rows["width"][row].as_py()
    if pixels.shape[:2] != size_hw:
        raise DatasetError(
            f"{name} has (height, width) {pixels.shape[:2]}, its row says {size_hw}; "
            "ingest the split again"
        )
    return pixels


def laid(pixels: Pixels, geometry: Geometry) -> Pixels:
    """Resize and flip (H, W, 3) pixels: bilinear with antialiasing, as Pillow does for detectron2.

    Torch's kernel takes 5.6 ms from 640 x 480 to 800 px where Pillow takes 13.2 (one thread) and
    differs from it by one level in 0.1 % of the values.
    """
    size_hw = (geometry.height_px, geometry.width_px)
    if pixels.shape[:2] != size_hw:
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        image = F.interpolate(image, size_hw, mode="bilinear", antialias=True, align_corners=False)
        pixels = image[0].permute(1, 2, 0).numpy()
    return pixels[:, ::-1] if geometry.flipped else pixels


def prepare_image(image: bytes | Pixels, data: DataConfig, *, name: str = "the image") -> Pixels:
    """Turn an encoded file or an array into the (H, W, 3) RGB pixels that evaluation sees.

    Args:
        image: an encoded file, or uint8 pixels: (H, W), (H, W, 1), RGB (H, W, 3) or RGBA (H, W, 4).
        data: gives the size.
        name: what to call the image in an error.

    Raises:
        DatasetError: it cannot be decoded, or is no array of such a shape and type.
    """
    pixels = decoded(image, name=name) if isinstance(image, bytes) else rgb(image, name=name)
    height, width = pixels.shape[:2]
    return laid(pixels, evaluation_geometry((height, width), data))


def rgb(pixels: NDArray[np.generic], *, name: str) -> Pixels:
    """Bring gray, RGB or RGBA uint8 pixels to (H, W, 3).

    Raises:
        DatasetError: the shape or the type is another, or there are no pixels.
    """
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        raise DatasetError(
            f"{name} is an array of {pixels.dtype} {pixels.shape}; "
            "give uint8 pixels (H, W), RGB (H, W, 3) or RGBA (H, W, 4)"
        )
    if pixels.size == 0:
        raise DatasetError(f"{name} has no pixels: its shape is {pixels.shape}")
    three = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[:, :, :3]
    return np.ascontiguousarray(three, dtype=np.uint8)


def _fitted(size_hw: tuple[int, int], short_edge_px: int, long_edge_px: int) -> tuple[int, int]:
    """Scale a size to the short edge, or less where the long edge would pass its limit.

    The arithmetic and the rounding are detectron2's ResizeShortestEdge.
    """
    height, width = size_hw
    scale = short_edge_px / min(height, width)
    if height < width:
        new_height, new_width = float(short_edge_px), scale * width
    else:
        new_height, new_width = scale * height, float(short_edge_px)
    if max(new_height, new_width) > long_edge_px:
        scale = long_edge_px / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    # A sliver keeps at least one pixel.
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))
