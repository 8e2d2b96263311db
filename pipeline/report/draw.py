"""Pictures of masks on photos: an overlay for one photo, and truth beside prediction for a few.

Small photos are enlarged, so that a one-pixel boundary can be seen; masks keep their pixels, so
that what looks jagged is jagged.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as mask_api

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Color = tuple[int, int, int]

MIN_SIDE_PX = 384
"""Photos whose shorter side is smaller are enlarged to it."""

# Bright, far apart in hue, and all readable on photos; categories take them in turn.
PALETTE: tuple[Color, ...] = (
    (255, 92, 92), (64, 156, 255), (255, 190, 46), (72, 200, 120), (190, 110, 255),
    (255, 130, 200), (60, 205, 215), (255, 140, 60), (170, 205, 60), (130, 140, 255),
)  # fmt: skip
_FILL = 0.42
_HIDDEN = 0.15
"""A label that hides more than this share of its size of other labels is left out."""


class Shape(NamedTuple):
    """One object to draw."""

    mask: Mask
    """(H, W), at the size of the photo as it was before any resizing."""
    label: str
    """Its category, with the score where there is one."""
    color: Color


class _Box(NamedTuple):
    x0: int
    y0: int
    x1: int
    y1: int

    def overlap_px(self, other: "_Box") -> int:
        width = min(self.x1, other.x1) - max(self.x0, other.x0)
        height = min(self.y1, other.y1) - max(self.y0, other.y0)
        return max(width, 0) * max(height, 0)


def shape(
    rle: dict[str, Any], *, category_index: int, name: str, score: float | None = None
) -> Shape:
    """Make a shape of COCO run lengths.

    Args:
        rle: size and counts, as pycocotools or a detections file has them.
        category_index: gives the color.
        name: the category.
        score: shown beside the name.
    """
    label = name if score is None else f"{name} {score:.2f}"
    mask = np.asarray(mask_api.decode(rle), dtype=bool)
    return Shape(mask, label, PALETTE[category_index % len(PALETTE)])


def shapes_of(rows: Iterable[Mapping[str, Any]]) -> list[Shape]:
    """Make shapes of the rows that a registered model answers with."""
    return [
        shape(
            row["rle"],
            category_index=row["category_index"],
            name=row["category_name"],
            score=row["score"],
        )
        for row in rows
    ]


def overlay(
    photo: Pixels, shapes: Sequence[Shape], *, min_side_px: int = MIN_SIDE_PX
) -> Image.Image:
    """Draw objects over a photo: half transparent, with crisp outlines and readable labels.

    Args:
        photo: (H, W, 3) RGB.
        shapes: in any order; small ones come to lie on top, and lose their label in a crowd.
        min_side_px: the shorter side of the picture is at least this.
    """
    large = enlarged(photo, min_side_px=min_side_px)
    height, width = large.shape[:2]
    line_px = max(2, round(min(height, width) / 260))
    canvas = large.astype(np.float32)
    outlines = []
    for each in sorted(shapes, key=lambda each: -int(each.mask.sum())):
        mask = _resized(each.mask, (height, width))
        canvas[mask] = canvas[mask] * (1 - _FILL) + np.array(each.color, np.float32) * _FILL
        outlines.append((_contours(mask), each.color))
    drawn = canvas.round().astype(np.uint8)
    for contours, color in outlines:
        # A dark line under the bright one: an outline shows on a ground of its own color, too.
        cv2.polylines(drawn, contours, True, (20, 20, 20), line_px + 2, cv2.LINE_AA)  # noqa: FBT003
        cv2.polylines(drawn, contours, True, color, line_px, cv2.LINE_AA)  # noqa: FBT003
    picture = Image.fromarray(drawn)
    _draw_labels(picture, shapes)
    return picture


def enlarged(photo: Pixels, *, min_side_px: int) -> Pixels:
    """Enlarge a photo, smoothly, until its shorter side has so many pixels; never shrink it."""
    height, width = photo.shape[:2]
    scale = max(1.0, min_side_px / min(height, width))
    size = (round(width * scale), round(height * scale))
    return np.asarray(cv2.resize(photo, size, interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


def font(size_px: int) -> ImageFont.FreeTypeFont:
    """Give the typeface of all pictures; it comes with matplotlib and knows most scripts."""
    return _font("DejaVuSans.ttf", size_px)


def bold_font(size_px: int) -> ImageFont.FreeTypeFont:
    """Give the same typeface for headings."""
    return _font("DejaVuSans-Bold.ttf", size_px)


@lru_cache(maxsize=16)
def _font(name: str, size_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / name), size_px)


def _resized(mask: Mask, size_hw: tuple[int, int]) -> Mask:
    height, width = size_hw
    resized = cv2.resize(
        mask.view(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST_EXACT
    )
    return np.asarray(resized, dtype=bool)


def _contours(mask: Mask) -> list[Any]:
    found, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return list(found)


def _draw_labels(picture: Image.Image, shapes: Sequence[Shape]) -> None:
    size_px = max(12, round(min(picture.size) / 32))
    draw = ImageDraw.Draw(picture)
    taken: list[_Box] = []
    # The largest first: their labels have the most room to give way.
    for each in sorted(shapes, key=lambda each: -int(each.mask.sum())):
        rows, columns = np.nonzero(each.mask)
        if not len(rows):
            continue
        scale = picture.height / each.mask.shape[0]
        corners = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        box = _Box(*(round(float(corner) * scale) for corner in corners))
        text_px = round(draw.textlength(each.label, font=font(size_px)))
        chip = _placed(box, (text_px + 8, size_px + 6), picture.size, taken)
        if chip is None:
            continue
        taken.append(chip)
        draw.rounded_rectangle(chip, radius=3, fill=each.color, outline=(20, 20, 20))
        draw.text(
            ((chip.x0 + chip.x1) / 2, (chip.y0 + chip.y1) / 2),
            each.label,
            font=font(size_px),
            fill=(15, 15, 15),
            anchor="mm",
        )


def _placed(
    box: _Box, size: tuple[int, int], picture: tuple[int, int], taken: Sequence[_Box]
) -> _Box | None:
    """Find a place for a label at its object; None where it would hide other labels."""
    width, height = size
    middle_x, middle_y = (box.x0 + box.x1 - width) // 2, (box.y0 + box.y1 - height) // 2
    above, below = box.y0 - height - 2, box.y1 + 2
    corners = [
        *((x, y) for y in (above, below) for x in (box.x0, box.x1 - width, middle_x)),
        *((x, middle_y) for x in (box.x1 + 2, box.x0 - width - 2, middle_x)),
        *((middle_x, y) for y in (box.y0 + 2, box.y1 - height - 2)),
    ]
    places = [_inside(_Box(x, y, x + width, y + height), picture) for x, y in corners]
    hidden_px = [sum(place.overlap_px(other) for other in taken) for place in places]
    best = hidden_px.index(min(hidden_px))
    return places[best] if hidden_px[best] <= _HIDDEN * width * height else None


def _inside(box: _Box, picture: tuple[int, int]) -> _Box:
    x = max(1, min(box.x0, picture[0] - 2 - (box.x1 - box.x0)))
    y = max(1, min(box.y0, picture[1] - 2 - (box.y1 - box.y0)))
    return _Box(x, y, x + box.x1 - box.x0, y + box.y1 - box.y0)
