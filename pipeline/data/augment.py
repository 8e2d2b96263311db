"""Image transforms of instance models: resize by the short edge, or a jittered crop; flip.

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

from pipeline.data.mask_patches import WindowXyxy
from pipeline.data.photo import Pixels, decode_image
from pipeline.data.seeds import hash_ints, uniform
from pipeline.data.test_size import fit_edges
from pipeline.errors import DatasetError
from pipeline.recipe import ColorConfig, DataConfig

# Purpose of a draw; part of its hash. copy_paste.py and photo_damage.py have others.
_SHORT_EDGE, _FLIP, _SCALE, _POSITION, _COLORS = 1, 2, 3, (4, 5), (11, 12, 13, 14)


class ResizeFlip(NamedTuple):
    """A resize to a fixed size, then an optional horizontal flip."""

    height_px: int
    width_px: int
    flipped: bool
    window_xyxy: WindowXyxy | None = None
    """The part of the stored image that is resized, in whole pixels; None is all of it."""


def draw_train_transform(
    size_hw: tuple[int, int], data: DataConfig, *, sample_seed: int
) -> ResizeFlip:
    """Draw the size, the crop and the flip of a sample.

    Args:
        size_hw: size of the stored image.
        data: the choices.
        sample_seed: from seeds.sample_seeds.
    """
    if data.scale_jitter is not None:
        fit = data.crop_px / max(size_hw)
        scale = fit * draw_scale(data.scale_jitter, sample_seed=sample_seed)
        return draw_square(size_hw, scale, data, sample_seed=sample_seed)[0]
    edges = data.short_edge_px
    short_edge_px = edges[int(hash_ints(sample_seed, _SHORT_EDGE)[0] % np.uint64(len(edges)))]
    height_px, width_px = fit_edges(size_hw, short_edge_px, data.long_edge_px)
    return ResizeFlip(height_px, width_px, draw_flip(data, sample_seed=sample_seed))


def draw_scale(limits: tuple[float, float], *, sample_seed: int) -> float:
    """Draw the scale of a sample, uniform between its limits."""
    low, high = limits
    return low + (high - low) * _draw_uniform(sample_seed, _SCALE)


def draw_square(
    size_hw: tuple[int, int], scale: float, data: DataConfig, *, sample_seed: int
) -> tuple[ResizeFlip, float]:
    """Draw the part of an image that fills a square of crop_px at a scale, and the flip.

    The part is cropped first and resized then, so a sample costs what its crop costs; only the
    outermost pixels of the crop miss the neighbors outside it.

    Args:
        size_hw: size of the stored image.
        scale: pixels of the crop per stored pixel; it is rounded a little, so that whole pixels
            become whole pixels.
        data: gives crop_px.
        sample_seed: from seeds.sample_seeds.

    Returns:
        The transform, and the scale after rounding.
    """
    side = max(1, round(data.crop_px / scale))
    zoom = data.crop_px / side
    (y0, y1), (x0, x1) = (
        _place_span(length, side, at=_draw_uniform(sample_seed, purpose))
        for length, purpose in zip(size_hw, _POSITION, strict=True)
    )
    height_px, width_px = (max(1, round(length * zoom)) for length in (y1 - y0, x1 - x0))
    flipped = draw_flip(data, sample_seed=sample_seed)
    return ResizeFlip(height_px, width_px, flipped, (x0, y0, x1, y1)), zoom


def draw_flip(data: DataConfig, *, sample_seed: int) -> bool:
    """Draw whether a sample is flipped."""
    return _draw_uniform(sample_seed, _FLIP) < data.flip_probability


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
    """Crop, resize and flip an image (H, W, 3), bilinear with antialiasing as detectron2's Pillow.

    Torch's kernel takes 5.6 ms from 640 x 480 to 800 px where Pillow takes 13.2 (one thread) and
    differs from it by a level or two: on photos of COCO in 2.7 % of the values at a short edge of
    384 px, 0.1 % at 320 px and 0.01 % at 800 px.
    """
    if transform.window_xyxy is not None:
        x0, y0, x1, y1 = transform.window_xyxy
        pixels = pixels[y0:y1, x0:x1]
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


def _place_span(length: int, side: int, *, at: float) -> tuple[int, int]:
    """Place a span of `side` pixels, or the whole length if it is shorter."""
    start = int(at * (max(0, length - side) + 1))
    return start, start + min(length, side)


def _draw_uniform(sample_seed: int, purpose: int) -> float:
    return float(uniform(hash_ints(sample_seed, purpose))[0])
