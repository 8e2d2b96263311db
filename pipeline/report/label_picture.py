"""Draw a label map over its photo, with lines between classes and a legend.

Small photos are enlarged, so that a one-pixel border is visible; labels are not smoothed.
"""

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.report.draw import (
    MIN_SIDE_PX,
    Color,
    Mask,
    Pixels,
    blend,
    enlarge_photo,
    font,
    resize_nearest,
    thicken,
)

Labels = NDArray[np.uint8]

_FILL = 0.55
_TURN = 0.381966
"""Hue step between classes, as a share of the circle: the golden angle keeps hues far apart."""


class ClassColor(NamedTuple):
    """A class and its color."""

    value: int
    """Value of the class in the label map."""
    name: str
    color: Color


def assign_colors(names: dict[int, str]) -> list[ClassColor]:
    """Assign each class a color, the same in all pictures.

    Args:
        names: class names by value, in the order of the data set.
    """
    return [
        ClassColor(value, name, _get_color(index))
        for index, (value, name) in enumerate(names.items())
    ]


def draw_label_map(
    photo: Pixels, labels: Labels, classes: Sequence[ClassColor], *, min_side_px: int = MIN_SIDE_PX
) -> Image.Image:
    """Draw a label map over its photo, with a legend of its classes below.

    Args:
        photo: (H, W, 3) RGB.
        labels: (H, W); values without a class stay transparent.
        classes: all classes of the data set.
        min_side_px: minimum of the shorter side of the enlarged photo.
    """
    large = enlarge_photo(photo, min_side_px=min_side_px)
    height, width = large.shape[:2]
    resized = resize_nearest(labels, (height, width))
    canvas = large.astype(np.float32)
    for each in classes:
        blend(canvas, resized == each.value, each.color, fill=_FILL)
    drawn = canvas.round().astype(np.uint8)
    drawn[thicken(_find_borders(resized), max(1, round(min(height, width) / 400)))] = (20, 20, 20)
    counts = np.bincount(labels.ravel(), minlength=256)
    present = sorted((e for e in classes if counts[e.value]), key=lambda e: -counts[e.value])
    legend = [(f"{e.name} {_format_percent(counts[e.value] / labels.size)}", e) for e in present]
    return _add_legend(Image.fromarray(drawn), legend)


def _find_borders(labels: Labels) -> Mask:
    """Mark the pixels to the left of and above a change of class."""
    changes = np.zeros(labels.shape, bool)
    changes[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    changes[:-1] |= labels[:-1] != labels[1:]
    return changes


def _add_legend(picture: Image.Image, legend: Sequence[tuple[str, ClassColor]]) -> Image.Image:
    """Add the legend below a picture, a patch and a text for each class."""
    size_px = max(12, round(min(picture.size) / 32))
    face, gap = font(size_px), size_px // 2
    chip, line = round(1.4 * size_px), round(1.7 * size_px)
    corners: list[tuple[int, int]] = []
    x = y = gap
    for text, _ in legend:
        wide = chip + gap + round(face.getlength(text)) + 2 * gap
        if x > gap and x + wide > picture.width:
            x, y = gap, y + line
        corners.append((x, y))
        x += wide
    whole = Image.new("RGB", (picture.width, picture.height + y + line + gap), (255, 255, 255))
    whole.paste(picture, (0, 0))
    draw = ImageDraw.Draw(whole)
    for (text, each), (left, top) in zip(legend, corners, strict=True):
        row = picture.height + top
        draw.rectangle(
            (left, row, left + chip, row + size_px), fill=each.color, outline=(20, 20, 20)
        )
        middle = row + size_px // 2
        draw.text((left + chip + gap, middle), text, font=face, fill=(15, 15, 15), anchor="lm")
    return whole


def _get_color(index: int) -> Color:
    """Turn the hue and the lightness from class to class."""
    lightness, saturation = ((0.55, 0.85), (0.3, 0.7), (0.78, 0.9))[index % 3]
    parts = colorsys.hls_to_rgb((index * _TURN) % 1, lightness, saturation)
    red, green, blue = (round(255 * part) for part in parts)
    return red, green, blue


def _format_percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share >= 0.01 else "<1%"
