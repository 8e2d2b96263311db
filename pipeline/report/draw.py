"""Draw instance masks on photos.

Small photos are enlarged, so that a one-pixel boundary is visible. Masks are enlarged without
smoothing, so that a jagged mask looks jagged.
"""

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as mask_api

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Color = tuple[int, int, int]

MIN_SIDE_PX = 384
"""Photos with a smaller shorter side are enlarged to it."""

MAX_SIDE_PX = 8192
"""No photo is enlarged beyond it: a narrow strip would fill the memory, and no JPEG can hold it."""

# Bright, different in hue and visible on photos; categories use them in turn.
PALETTE: tuple[Color, ...] = (
    (255, 92, 92), (64, 156, 255), (255, 190, 46), (72, 200, 120), (190, 110, 255),
    (255, 130, 200), (60, 205, 215), (255, 140, 60), (170, 205, 60), (130, 140, 255),
)  # fmt: skip
_FILL = 0.42
_HIDDEN = 0.15
"""A label is omitted if it would hide other labels by more than this share of its own area."""


class Instance(NamedTuple):
    """One instance to draw."""

    mask: Mask
    """(H, W), the size of the original photo."""
    label: str
    """Category name, with the score if there is one."""
    color: Color


class EncodedInstance(NamedTuple):
    """One instance to draw, whose mask is decoded when it is asked for.

    A hundred dense masks of a photo with 24 megapixels would take 2.4 GB.
    """

    rle: Mapping[str, Any]
    """Size and counts, as in pycocotools."""
    label: str
    color: Color

    @property
    def mask(self) -> Mask:
        """The mask (H, W)."""
        return np.asarray(mask_api.decode(self.rle), dtype=bool)


class _Box(NamedTuple):
    x0: int
    y0: int
    x1: int
    y1: int

    def overlap_px(self, other: "_Box") -> int:
        width = min(self.x1, other.x1) - max(self.x0, other.x0)
        height = min(self.y1, other.y1) - max(self.y0, other.y0)
        return max(width, 0) * max(height, 0)


def decode_instance(
    rle: dict[str, Any], *, category_index: int, name: str, score: float | None = None
) -> Instance:
    """Decode an instance from COCO RLE.

    Args:
        rle: size and counts, as in pycocotools.
        category_index: selects the color.
        name: of the category.
        score: shown after the name.
    """
    label = name if score is None else f"{name} {score:.2f}"
    mask = np.asarray(mask_api.decode(rle), dtype=bool)
    return Instance(mask, label, PALETTE[category_index % len(PALETTE)])


def decode_instances(rows: Iterable[Mapping[str, Any]]) -> list[Instance]:
    """Decode the prediction rows of a registered model."""
    return [Instance(each.mask, each.label, each.color) for each in list_instances(rows)]


def list_instances(rows: Iterable[Mapping[str, Any]]) -> list[EncodedInstance]:
    """List the prediction rows of a model for drawing, with masks still encoded."""
    return [
        EncodedInstance(
            row["rle"],
            f"{row['category_name']} {row['score']:.2f}",
            PALETTE[row["category_index"] % len(PALETTE)],
        )
        for row in rows
    ]


def draw_instances(
    photo: Pixels,
    instances: Sequence[Instance | EncodedInstance],
    *,
    min_side_px: int = MIN_SIDE_PX,
) -> Image.Image:
    """Draw instances over a photo, half transparent, with outlines and labels.

    Args:
        photo: (H, W, 3) RGB.
        instances: in any order; small ones are drawn on top, and lose their label in a crowd.
        min_side_px: minimum of the shorter side of the picture.
    """
    large = enlarge_photo(photo, min_side_px=min_side_px)
    height, width = large.shape[:2]
    line_px = max(2, round(min(height, width) / 260))
    canvas = large.astype(np.float32)
    outlines = []
    for each in sorted(instances, key=lambda each: -int(each.mask.sum())):
        mask = resize_nearest(each.mask, (height, width))
        blend(canvas, mask, each.color, fill=_FILL)
        outlines.append((_find_contours(mask), each.color))
    drawn = canvas.round().astype(np.uint8)
    for contours, color in outlines:
        # A dark line under the bright one keeps the outline visible on a similar color.
        cv2.polylines(drawn, contours, True, (20, 20, 20), line_px + 2, cv2.LINE_AA)  # noqa: FBT003
        cv2.polylines(drawn, contours, True, color, line_px, cv2.LINE_AA)  # noqa: FBT003
    picture = Image.fromarray(drawn)
    _draw_labels(picture, instances)
    return picture


def enlarge_photo(photo: Pixels, *, min_side_px: int) -> Pixels:
    """Enlarge a photo, bicubic, until its shorter side has min_side_px; never shrink it.

    The longer side is not enlarged beyond MAX_SIDE_PX.
    """
    height, width = photo.shape[:2]
    scale = max(1.0, min(min_side_px / min(height, width), MAX_SIDE_PX / max(height, width)))
    size = (round(width * scale), round(height * scale))
    return np.asarray(cv2.resize(photo, size, interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


def resize_nearest(values: NDArray[Any], size_hw: tuple[int, int]) -> NDArray[Any]:
    """Resize a mask or label map (H, W), nearest neighbor."""
    resized = cv2.resize(
        values.view(np.uint8), size_hw[::-1], interpolation=cv2.INTER_NEAREST_EXACT
    )
    return np.asarray(resized).astype(values.dtype)


def thicken(lines: Mask, width_px: int) -> Mask:
    """Dilate one-pixel lines to a width."""
    kernel = np.ones((width_px, width_px), np.uint8)
    return np.asarray(cv2.dilate(lines.view(np.uint8), kernel), dtype=bool)


def blend(canvas: NDArray[np.float32], mask: Mask, color: Color, *, fill: float) -> None:
    """Blend a color into the masked pixels of a canvas, in place."""
    canvas[mask] = canvas[mask] * (1 - fill) + np.array(color, np.float32) * fill


@lru_cache(maxsize=16)
def font(size_px: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Load the font of all pictures, which comes with matplotlib and covers most scripts."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    # Found without its import, which takes half a second.
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("matplotlib is not installed; its font labels the pictures")
    file = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / name
    return ImageFont.truetype(str(file), size_px)


def _find_contours(mask: Mask) -> list[Any]:
    found, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return list(found)


def _draw_labels(picture: Image.Image, instances: Sequence[Instance | EncodedInstance]) -> None:
    size_px = max(12, round(min(picture.size) / 32))
    draw = ImageDraw.Draw(picture)
    taken: list[_Box] = []
    # The largest first: their labels have the most space to move.
    for each in sorted(instances, key=lambda each: -int(each.mask.sum())):
        rows, columns = np.nonzero(each.mask)
        if not len(rows):
            continue
        scale = picture.height / each.mask.shape[0]
        corners = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        box = _Box(*(round(float(corner) * scale) for corner in corners))
        text_px = round(draw.textlength(each.label, font=font(size_px)))
        chip = _place_label(box, (text_px + 8, size_px + 6), picture.size, taken)
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


def _place_label(
    box: _Box, size: tuple[int, int], picture: tuple[int, int], taken: Sequence[_Box]
) -> _Box | None:
    """Place a label at its instance; return None if it would hide other labels."""
    width, height = size
    middle_x, middle_y = (box.x0 + box.x1 - width) // 2, (box.y0 + box.y1 - height) // 2
    above, below = box.y0 - height - 2, box.y1 + 2
    corners = [
        *((x, y) for y in (above, below) for x in (box.x0, box.x1 - width, middle_x)),
        *((x, middle_y) for x in (box.x1 + 2, box.x0 - width - 2, middle_x)),
        *((middle_x, y) for y in (box.y0 + 2, box.y1 - height - 2)),
    ]
    boxes = [_move_inside(_Box(x, y, x + width, y + height), picture) for x, y in corners]
    hidden_px = [sum(each.overlap_px(other) for other in taken) for each in boxes]
    best = hidden_px.index(min(hidden_px))
    return boxes[best] if hidden_px[best] <= _HIDDEN * width * height else None


def _move_inside(box: _Box, picture: tuple[int, int]) -> _Box:
    x = max(1, min(box.x0, picture[0] - 2 - (box.x1 - box.x0)))
    y = max(1, min(box.y0, picture[1] - 2 - (box.y1 - box.y0)))
    return _Box(x, y, x + box.x1 - box.x0, y + box.y1 - box.y0)
