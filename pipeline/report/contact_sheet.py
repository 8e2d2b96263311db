"""Draw a contact sheet: crops of photos with the outline of a mask before and after.

The crops of a tile show the same part of a photo: left the given mask, right the refined one.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as mask_api

from pipeline.report.draw import Color, Mask, Pixels, font, resize_nearest

MAX_TILES = 24
"""Largest number of tiles of a sheet."""

_COLUMNS = 4
_SIDE_PX = 200
"""Side of a crop in the sheet."""
_NAME_PX, _GAP_PX = 22, 10
_TILE_PX = 2 * _SIDE_PX, _SIDE_PX + _NAME_PX
_CONTEXT = 1.3
_MIN_CROP_PX = 32
_MAX_NAME = 52

_BEFORE: Color = (255, 70, 200)
_AFTER: Color = (80, 220, 160)
_BACKGROUND: Color = (255, 255, 255)
_INK: Color = (30, 30, 30)


def draw_tile(
    name: str, photo: Pixels, *, before: Mapping[str, Any], after: Mapping[str, Any]
) -> Image.Image:
    """Draw one mask before and after.

    Args:
        name: shown below.
        photo: (H, W, 3) RGB.
        before: compressed RLE of the photo's size, not empty.
        after: the same.
    """
    masks = [np.asarray(mask_api.decode(rle), dtype=bool) for rle in (before, after)]
    crop = _choose_crop(masks[0] | masks[1])
    tile = Image.new("RGB", _TILE_PX, _BACKGROUND)
    for left, mask, color in zip((0, _SIDE_PX), masks, (_BEFORE, _AFTER), strict=True):
        picture = _draw_outline(photo[crop], mask[crop], color)
        margins = (_SIDE_PX - picture.width) // 2, (_SIDE_PX - picture.height) // 2
        tile.paste(picture, (left + margins[0], margins[1]))
    text = name[-_MAX_NAME:]
    ImageDraw.Draw(tile).text((0, _SIDE_PX + 3), text, font=font(13), fill=_INK)
    return tile


def draw_contact_sheet(tiles: Sequence[Image.Image]) -> bytes:
    """Place tiles in rows, in order, and encode the picture as PNG."""
    width, height = (side + _GAP_PX for side in _TILE_PX)
    columns, rows = min(_COLUMNS, len(tiles)), -(-len(tiles) // _COLUMNS)
    size = (columns * width + _GAP_PX, rows * height + _GAP_PX)
    sheet = Image.new("RGB", size, _BACKGROUND)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, _COLUMNS)
        sheet.paste(tile, (_GAP_PX + column * width, _GAP_PX + row * height))
    encoded = io.BytesIO()
    sheet.save(encoded, format="PNG")
    return encoded.getvalue()


def _choose_crop(mask: Mask) -> tuple[slice, slice]:
    """Choose a crop around a mask, with surroundings."""
    slices = []
    for axis in (1, 0):
        filled = np.flatnonzero(mask.any(axis=axis))
        first, last = int(filled[0]), int(filled[-1]) + 1
        side = max(round(_CONTEXT * (last - first)), _MIN_CROP_PX)
        start = max((first + last - side) // 2, 0)
        slices.append(slice(start, start + side))
    return slices[0], slices[1]


def _draw_outline(photo: Pixels, mask: Mask, color: Color) -> Image.Image:
    """Scale a crop into a square, and draw the outline of its mask."""
    height, width = mask.shape
    scale = _SIDE_PX / max(height, width)
    size_hw = max(1, round(height * scale)), max(1, round(width * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    drawn = np.ascontiguousarray(cv2.resize(photo, size_hw[::-1], interpolation=method))
    large = resize_nearest(np.ascontiguousarray(mask), size_hw)
    contours, _ = cv2.findContours(large.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.polylines(drawn, list(contours), True, color, 2, cv2.LINE_AA)  # noqa: FBT003
    return Image.fromarray(drawn)
