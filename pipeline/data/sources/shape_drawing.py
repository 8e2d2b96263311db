"""Draw the outlines and textures of the embedded data set.

Every shape is a closed curve with wiggles at several frequencies, so that a coarse mask cannot
follow it and a sharp boundary improves the metrics.

    H, W image size in pixels; P points of an outline, as (x, y) with pixel edges at integers.
"""

import colorsys
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

Points: TypeAlias = NDArray[np.float64]
"""(P, 2) xy."""
Plane: TypeAlias = NDArray[np.float32]
"""(H, W), mostly in 0..1."""
Picture: TypeAlias = NDArray[np.float32]
"""(H, W, 3) RGB in 0..255."""

SUPERSAMPLING = 4
"""Outlines are filled on a finer grid by this factor, for antialiasing."""


class Outline(NamedTuple):
    """The region of one shape: the union of its parts without its holes."""

    parts: list[Points]
    holes: list[Points]


def draw_blob(rng: np.random.Generator, *, center_xy: Points, radius_px: float) -> Outline:
    """Draw a closed curve with wiggles."""
    radii = radius_px * _draw_wiggles(rng, lowest=2, highest=9, strength=0.28)
    return Outline([_squash(rng, _polar(radii), center_xy)], [])


def draw_star(rng: np.random.Generator, *, center_xy: Points, radius_px: float) -> Outline:
    """Draw a star of five to eight points."""
    num_points = int(rng.integers(5, 9))
    depth = rng.uniform(0.4, 0.6)
    angle = np.linspace(0, 1, _POINTS, endpoint=False) * num_points
    saw = np.abs((angle % 1.0) * 2 - 1)
    radii = (
        radius_px * (1 - depth * (1 - saw)) * _draw_wiggles(rng, lowest=2, highest=5, strength=0.08)
    )
    return Outline([_rotate(_polar(1.15 * radii), rng.uniform(0, 2 * np.pi)) + center_xy], [])


def draw_crescent(rng: np.random.Generator, *, center_xy: Points, radius_px: float) -> Outline:
    """Draw a crescent with two thin tips."""
    reach = rng.uniform(1.9, 2.4)
    angle = np.linspace(-reach, reach, _POINTS // 2)
    outer = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    thickness = rng.uniform(0.55, 0.8)
    inner = outer[::-1] - np.stack(
        [thickness * np.cos(angle[::-1] / reach * np.pi / 2), np.zeros_like(angle)], axis=1
    )
    points = np.concatenate([outer, inner[1:-1]])
    points *= _draw_wiggles(rng, lowest=3, highest=11, strength=0.08, count=len(points))[:, None]
    return Outline([_rotate(1.1 * radius_px * points, rng.uniform(0, 2 * np.pi)) + center_xy], [])


def draw_ring(rng: np.random.Generator, *, center_xy: Points, radius_px: float) -> Outline:
    """Draw a wiggly disk with a wiggly hole."""
    outer = radius_px * _draw_wiggles(rng, lowest=2, highest=8, strength=0.12)
    share = rng.uniform(0.45, 0.62)
    inner = radius_px * share * _draw_wiggles(rng, lowest=2, highest=6, strength=0.14)
    squash = rng.uniform(0.75, 1.0)
    turn = rng.uniform(0, 2 * np.pi)
    stretch = np.array([1.0, squash])
    return Outline(
        [_rotate(_polar(outer) * stretch, turn) + center_xy],
        [_rotate(_polar(inner) * stretch, turn) + center_xy],
    )


def draw_branch(rng: np.random.Generator, *, center_xy: Points, radius_px: float) -> Outline:
    """Draw a thin bent stick with two or three twigs."""
    width_px = rng.uniform(0.18, 0.26) * radius_px + 2
    stem = _stroke(rng, start=np.array([-1.25, 0.0]), angle=0.0, length=2.5)
    strokes = [(stem, width_px)]
    for _ in range(int(rng.integers(2, 4))):
        foot = int(rng.integers(len(stem) // 4, 3 * len(stem) // 4))
        angle = rng.choice([-1, 1]) * rng.uniform(0.6, 1.1)
        twig = _stroke(rng, start=stem[foot], angle=angle, length=rng.uniform(0.6, 1.0))
        strokes.append((twig, 0.75 * width_px))
    turn = rng.uniform(0, 2 * np.pi)
    return Outline(
        [_thicken(_rotate(radius_px * line, turn) + center_xy, width_px=w) for line, w in strokes],
        [],
    )


SHAPES: dict[str, Callable[..., Outline]] = {
    "blob": draw_blob,
    "star": draw_star,
    "crescent": draw_crescent,
    "ring": draw_ring,
    "branch": draw_branch,
}
"""Drawing function by category name."""


def fill_outline(outline: Outline, *, size_hw: tuple[int, int]) -> Plane:
    """Compute the share of each pixel that is inside an outline."""
    height, width = size_hw
    fine = np.zeros((height * SUPERSAMPLING, width * SUPERSAMPLING), np.uint8)
    for points, value in [(p, 255) for p in outline.parts] + [(p, 0) for p in outline.holes]:
        # cv2 coordinates are relative to pixel centers, here in units of 1/16 px.
        fixed = np.round((points * SUPERSAMPLING - 0.5) * 16).astype(np.int32)
        cv2.fillPoly(fine, [fixed], value, shift=4)
    share: Plane = cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA) / np.float32(255)
    return share


def draw_noise(rng: np.random.Generator, *, size_hw: tuple[int, int], cells: int) -> Plane:
    """Draw smooth noise in 0..1 with bumps of about the image size over `cells`."""
    height, width = size_hw
    total = np.zeros(size_hw, np.float32)
    for octave, weight in ((cells, 1.0), (2 * cells, 0.5), (4 * cells, 0.25)):
        grid = rng.uniform(-1, 1, (octave + 1, octave + 1)).astype(np.float32)
        total += weight * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    clipped: Plane = np.clip(0.5 + 0.45 * total, 0, 1)
    return clipped


def draw_background(rng: np.random.Generator, *, size_hw: tuple[int, int]) -> Picture:
    """Draw a background: two similar dull colors mixed by noise, sometimes with stripes."""
    first = _rgb(rng.random(), saturation=rng.uniform(0, 0.35), value=rng.uniform(0.2, 0.85))
    second = np.clip(first * rng.uniform(0.6, 1.4) + rng.uniform(-15, 15, 3), 10, 240)
    mix = draw_noise(rng, size_hw=size_hw, cells=int(rng.integers(3, 9)))
    if rng.random() < 0.35:
        mix = np.clip(mix + 0.3 * (_draw_stripes(rng, size_hw=size_hw) - 0.5), 0, 1)
    return _blend(first, second, mix)


def draw_fill(
    rng: np.random.Generator,
    *,
    name: str,
    center_xy: Points,
    size_hw: tuple[int, int],
) -> Picture:
    """Draw the texture of a shape: each category has its own pattern and prefers a hue."""
    hue = list(SHAPES).index(name) / len(SHAPES) + rng.normal(0, _HUE_SPREAD)
    first = _rgb(hue, saturation=rng.uniform(0.45, 1), value=rng.uniform(0.55, 1))
    second = np.clip(first * rng.uniform(0.55, 0.8), 0, 255)
    height, width = size_hw
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) + 0.5
    dx, dy = x - center_xy[0], y - center_xy[1]
    phase = rng.uniform(0, 2 * np.pi)
    match name:
        case "blob":
            pattern = draw_noise(rng, size_hw=size_hw, cells=12)
        case "star":
            pattern = 0.5 + 0.5 * np.cos(9 * np.arctan2(dy, dx) + phase)
        case "crescent":
            pattern = np.clip(0.5 + (dx * np.cos(phase) + dy * np.sin(phase)) / 50, 0, 1)
        case "ring":
            pattern = 0.5 + 0.5 * np.cos(0.9 * np.hypot(dx, dy) + phase)
        case _:
            pattern = draw_noise(rng, size_hw=size_hw, cells=24)
    return _blend(first, second, pattern.astype(np.float32))


_POINTS = 96
"""Points of a closed curve."""
_HUE_SPREAD = 0.07
"""Standard deviation in turns: neighbors on the circle are 0.2 apart, so hues overlap slightly."""


def _draw_wiggles(
    rng: np.random.Generator, *, lowest: int, highest: int, strength: float, count: int = _POINTS
) -> Points:
    """Draw a closed profile around 1; high frequencies are weaker."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    frequency = np.arange(lowest, highest + 1)[:, None]
    amplitude = rng.normal(0, 1, (len(frequency), 1)) / np.sqrt(frequency)
    phase = rng.uniform(0, 2 * np.pi, (len(frequency), 1))
    profile = (amplitude * np.cos(frequency * angle + phase)).sum(0)
    wiggles: Points = 1 + strength * np.tanh(profile)
    return wiggles


def _polar(radii: Points) -> Points:
    angle = np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    points: Points = radii[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return points


def _rotate(points: Points, angle: float) -> Points:
    cos, sin = np.cos(angle), np.sin(angle)
    rotated: Points = points @ np.array([[cos, sin], [-sin, cos]])
    return rotated


def _squash(rng: np.random.Generator, points: Points, center_xy: Points) -> Points:
    stretch = np.array([1.0, rng.uniform(0.6, 1.0)])
    return _rotate(points * stretch, rng.uniform(0, 2 * np.pi)) + center_xy


def _stroke(rng: np.random.Generator, *, start: Points, angle: float, length: float) -> Points:
    """Draw a bending line, (P, 2)."""
    bends = angle + np.cumsum(rng.normal(0, 0.13, 16))
    steps = np.stack([np.cos(bends), np.sin(bends)], axis=1) * length / 16
    return np.concatenate([start[None], start + np.cumsum(steps, axis=0)])


def _thicken(line: Points, *, width_px: float) -> Points:
    """Return the outline of a line that tapers to its end."""
    along = np.gradient(line, axis=0)
    normal = np.stack([-along[:, 1], along[:, 0]], axis=1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    half = width_px / 2 * np.linspace(1.0, 0.55, len(line))[:, None]
    return np.concatenate([line + half * normal, (line - half * normal)[::-1]])


def _draw_stripes(rng: np.random.Generator, *, size_hw: tuple[int, int]) -> Plane:
    y, x = np.mgrid[0 : size_hw[0], 0 : size_hw[1]].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(5, 14)
    wave = np.cos((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)
    striped: Plane = (0.5 + 0.5 * wave).astype(np.float32)
    return striped


def _blend(first: Points, second: Points, mix: Plane) -> Picture:
    mixed: Picture = (first + (second - first) * mix[..., None]).astype(np.float32)
    return mixed


def _rgb(hue: float, *, saturation: float, value: float) -> Points:
    """Convert a color to 0..255; the hue is in turns."""
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))
