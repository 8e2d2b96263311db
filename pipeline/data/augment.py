"""Image transforms of instance models: resize by the short edge, flip.

The random choices of a sample are a function of its seed alone (pipeline/data/seeds.py), so its
pixels are the same on every worker and after every resume. Pixels stay uint8 RGB; the model
normalizes.
"""

from typing import NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from pipeline.data.photo import Pixels, decode_image
from pipeline.data.seeds import hash_ints, uniform
from pipeline.data.test_size import fit_edges
from pipeline.errors import DatasetError
from pipeline.recipe import ColorConfig, DataConfig

# Purpose of a draw; part of its hash. augment_semantic.py has others.
_SHORT_EDGE, _FLIP, _COLORS = 1, 2, (11, 12, 13, 14)


class ResizeFlip(NamedTuple):
    """A resize to a fixed size, then an optional horizontal flip."""

    height_px: int
    width_px: int
    flipped: bool


def draw_train_transform(
    size_hw: tuple[int, int], data: DataConfig, *, sample_seed: int
) -> ResizeFlip:
    """Draw the short edge and the flip of a sample.

    Args:
        size_hw: size of the stored image.
        data: the choices.
        sample_seed: from seeds.sample_seeds.
    """
    edges = data.short_edge_px
    short_edge_px = edges[int(hash_ints(sample_seed, _SHORT_EDGE)[0] % np.uint64(len(edges)))]
    height_px, width_px = fit_edges(size_hw, short_edge_px, data.long_edge_px)
    return ResizeFlip(height_px, width_px, draw_flip(data, sample_seed=sample_seed))


def draw_flip(data: DataConfig, *, sample_seed: int) -> bool:
    """Draw whether a sample is flipped."""
    return float(uniform(hash_ints(sample_seed, _FLIP))[0]) < data.flip_probability


def draw_color_jitter(seeds: NDArray[np.int64], color: ColorConfig) -> torch.Tensor | None:
    """Draw the color jitter of samples.

    Args:
        seeds: (N,) from seeds.sample_seeds.
        color: the ranges.

    Returns:
        (N, 4) float32: factors of brightness, contrast and saturation, and the hue shift as a share
        of the circle; None if color jitter is off.
    """
    if not color.is_on:
        return None
    ranges = (color.brightness, color.contrast, color.saturation, color.hue)
    columns = [
        center + reach * (2 * uniform(hash_ints(seeds, purpose)) - 1)
        for center, reach, purpose in zip((1.0, 1.0, 1.0, 0.0), ranges, _COLORS, strict=True)
    ]
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))


def get_test_transform(size_hw: tuple[int, int], data: DataConfig) -> ResizeFlip:
    """Return the fixed transform of evaluation and inference."""
    height_px, width_px = fit_edges(size_hw, data.test_short_edge_px, data.long_edge_px)
    return ResizeFlip(height_px, width_px, flipped=False)


def decode_row(rows: pa.Table, row: int) -> Pixels:
    """Decode the image of a row of a shard.

    Raises:
        DatasetError: the image cannot be decoded, or its size differs from the row's.
    """
    name = f"image {rows['image_id'][row]}"
    try:
        pixels = decode_image(memoryview(rows["image"][row].as_buffer()), name=name)
    except DatasetError as error:
        raise DatasetError(
            f"{error} and ingest the split again; python jobs/audit.py --data SHARDS --deep lists "
            "all such images"
        ) from error
    size_hw = rows["height"][row].as_py(), rows["width"][row].as_py()
    if pixels.shape[:2] != size_hw:
        raise DatasetError(
            f"{name} has (height, width) {pixels.shape[:2]}, its row says {size_hw}; "
            "ingest the split again"
        )
    return pixels


def read_pixels(image: bytes | Pixels, *, name: str) -> Pixels:
    """Convert an encoded file or an array, as to_rgb takes it, to (H, W, 3) RGB.

    Raises:
        DatasetError: the image cannot be decoded or converted.
    """
    return decode_image(image, name=name) if isinstance(image, bytes) else to_rgb(image, name=name)


def to_rgb(pixels: NDArray[np.generic], *, name: str) -> Pixels:
    """Convert uint8 pixels (H, W), (H, W, 1), RGB (H, W, 3) or RGBA (H, W, 4) to (H, W, 3).

    Raises:
        DatasetError: the array has another shape or type, or no pixels.
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


def resize_and_flip(pixels: Pixels, transform: ResizeFlip) -> Pixels:
    """Resize and flip an image (H, W, 3), bilinear with antialiasing as detectron2 does in Pillow.

    Torch's kernel takes 5.6 ms from 640 x 480 to 800 px where Pillow takes 13.2 (one thread) and
    differs from it by a level or two: on photos of COCO in 2.7 % of the values at a short edge of
    384 px, 0.1 % at 320 px and 0.01 % at 800 px.
    """
    size_hw = (transform.height_px, transform.width_px)
    if pixels.shape[:2] != size_hw:
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        image = F.interpolate(image, size_hw, mode="bilinear", antialias=True, align_corners=False)
        pixels = image[0].permute(1, 2, 0).numpy()
    return pixels[:, ::-1] if transform.flipped else pixels


def resize_and_flip_labels(labels: Pixels, transform: ResizeFlip) -> Pixels:
    """Resize and flip a mask or label map (H, W), nearest neighbor."""
    size_wh = (transform.width_px, transform.height_px)
    if labels.shape != size_wh[::-1]:
        resized = cv2.resize(labels, size_wh, interpolation=cv2.INTER_NEAREST_EXACT)
        labels = np.asarray(resized, dtype=np.uint8)
    return labels[:, ::-1] if transform.flipped else labels
