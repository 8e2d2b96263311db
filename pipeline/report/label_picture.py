"""A label map over its photo: half transparent colors, borders between classes, and a legend.

Small photos are enlarged, so that a border of one pixel can be seen; labels keep their pixels.
"""

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.report.draw import MIN_SIDE_PX, Color, Pixels, enlarged, font

Labels = NDArray[np.uint8]

_FILL = 0.55
_TURN = 0.381966
"""Of the circle of hues between one class and the next: the golden angle, so that no two of the
first many are near."""


class Entry(NamedTuple):
    """One class of a picture."""

    value: int
    """Of its pixels in the label map."""
    name: str
    color: Color


def entries(names: dict[int, str]) -> list[Entry]:
    """Give every class a color that is the same in all pictures.

    Args:
        names: of the classes, by their value, in the order of the data set.
    """
    return [Entry(value, name, _color(place)) for place, (value, name) in enumerate(names.items())]


def label_overlay(
    photo: Pixels, labels: Labels, classes: Sequence[Entry], *, min_side_px: int = MIN_SIDE_PX
) -> Image.Image:
    """Draw a label map over its photo, with a legend of the classes that are in it below.

    Args:
        photo: (H, W, 3) RGB.
        labels: (H, W); values that are no class are left clear.
        classes: all there may be.
        min_side_px: the shorter side of the photo is enlarged to at least this.
    """
    large = enlarged(photo, min_side_px=min_side_px)
    height, width = large.shape[:2]
    shown = np.asarray(
        cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT), dtype=np.uint8
    )
    colors = large.astype(np.float32)
    for each in classes:
        here = shown == each.value
        colors[here] = (1 - _FILL) * colors[here] + _FILL * np.array(each.color, np.float32)
    drawn = colors.round().astype(np.uint8)
    line_px = max(1, round(min(height, width) / 400))
    drawn[_borders(shown, width_px=line_px)] = (20, 20, 20)
    counts = np.bincount(labels.ravel(), minlength=256)
    there = sorted((e for e in classes if counts[e.value]), key=lambda e: -counts[e.value])
    told = [(f"{each.name} {_percent(counts[each.value] / labels.size)}", each) for each in there]
    return _with_legend(Image.fromarray(drawn), told)


def _borders(labels: Labels, *, width_px: int) -> NDArray[np.bool_]:
    """Mark the pixels to the left of and above a change of class."""
    changes = np.zeros(labels.shape, np.uint8)
    changes[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    changes[:-1] |= labels[:-1] != labels[1:]
    thick = cv2.dilate(changes, np.ones((width_px, width_px), np.uint8))
    return np.asarray(thick, dtype=np.bool_)


def _with_legend(picture: Image.Image, told: Sequence[tuple[str, Entry]]) -> Image.Image:
    """Add rows of color and name below a picture."""
    size_px = max(12, round(min(picture.size) / 32))
    face, gap = font(size_px), size_px // 2
    chip, line = round(1.4 * size_px), round(1.7 * size_px)
    places: list[tuple[int, int]] = []
    x = y = gap
    for text, _ in told:
        wide = chip + gap + round(face.getlength(text)) + 2 * gap
        if x > gap and x + wide > picture.width:
            x, y = gap, y + line
        places.append((x, y))
        x += wide
    whole = Image.new("RGB", (picture.width, picture.height + y + line + gap), (255, 255, 255))
    whole.paste(picture, (0, 0))
    draw = ImageDraw.Draw(whole)
    for (text, each), (left, top) in zip(told, places, strict=True):
        row = picture.height + top
        draw.rectangle(
            (left, row, left + chip, row + size_px), fill=each.color, outline=(20, 20, 20)
        )
        middle = row + size_px // 2
        draw.text((left + chip + gap, middle), text, font=face, fill=(15, 15, 15), anchor="lm")
    return whole


def _color(place: int) -> Color:
    """Turn the hue from class to class, and the lightness each time it has gone round."""
    lightness, saturation = ((0.55, 0.85), (0.3, 0.7), (0.78, 0.9))[place % 3]
    parts = colorsys.hls_to_rgb((place * _TURN) % 1, lightness, saturation)
    red, green, blue = (round(255 * part) for part in parts)
    return red, green, blue


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share >= 0.01 else "<1%"
