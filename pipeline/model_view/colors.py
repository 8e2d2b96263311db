"""Colors of features: the wheel of a flow, and principal components as RGB (Fig. 5 and 9)."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.photo import Pixels

Floats = NDArray[np.float32]

_CLIP = 1, 99
"""Percentiles of a component that become black and white; single cells would darken all others."""


def color_flow(flow_xy: Floats, *, longest: float) -> Pixels:
    """Color a flow: its direction is the hue, its length the saturation.

    To the right is red, and from there clockwise: down is yellow-green, left cyan, up violet.

    Args:
        flow_xy: (2, H, W), x and y.
        longest: length of the most saturated color; longer flows have it too.

    Returns:
        (H, W, 3).
    """
    x, y = flow_xy.astype(np.float32)
    degrees = np.degrees(np.arctan2(y, x)) % 360
    saturation = np.minimum(np.hypot(x, y) / max(longest, 1e-9), 1)
    hsv = np.stack([degrees, saturation, np.ones_like(x)], axis=-1).astype(np.float32)
    colors = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))
    return (255 * colors).round().astype(np.uint8)


def draw_wheel(side_px: int) -> Image.Image:
    """Draw the legend of `color_flow`: a flow from the middle to each point has its color."""
    reach = (side_px - 1) / 2
    y, x = (np.mgrid[:side_px, :side_px] - reach).astype(np.float32)
    wheel = color_flow(np.stack([x, y]), longest=reach)
    wheel[np.hypot(x, y) > reach] = 255
    return Image.fromarray(wheel)


def find_longest(flows_xy: Sequence[Floats]) -> float:
    """Find the length that the wheel's rim stands for: nearly the longest of several flows."""
    lengths = np.concatenate([np.hypot(*flow).ravel() for flow in flows_xy])
    return float(np.percentile(lengths, _CLIP[1]))


def project_features(features: Sequence[Floats]) -> list[Pixels]:
    """Show features by their first three principal components as red, green and blue.

    The components are those of all features together, so equal colors mean equal features.

    Args:
        features: each (C, h, w).

    Returns:
        For each (h, w, 3). All gray where the features are constant.
    """
    cells = np.concatenate([each.reshape(len(each), -1).T for each in features]).astype(np.float64)
    mean = cells.mean(axis=0)
    # Eigenvectors of the channels' covariance: there are far more cells than channels.
    _, vectors = np.linalg.eigh(np.cov(cells - mean, rowvar=False).reshape(len(mean), -1))
    axes = vectors[:, ::-1][:, :3]
    # An eigenvector's sign is arbitrary; this makes it repeatable.
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    low, high = np.percentile((cells - mean) @ axes, _CLIP, axis=0)
    return [_to_rgb(each, mean, axes, low, high) for each in features]


def _to_rgb(
    feature: Floats,
    mean: NDArray[np.float64],
    axes: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
) -> Pixels:
    _, height, width = feature.shape
    projected = (feature.reshape(len(feature), -1).T - mean) @ axes
    span = high - low
    shares = np.where(span > 1e-9, (projected - low) / np.maximum(span, 1e-9), 0.5)
    colors = np.full((height * width, 3), 0.5)
    colors[:, : axes.shape[1]] = shares.clip(0, 1)
    return (255 * colors).round().astype(np.uint8).reshape(height, width, 3)
