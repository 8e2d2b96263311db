"""Photo, truth, prediction and boundary errors side by side: where outlines are right, at a glance.

    boundary_picture([Panel("000017.jpg", photo, truth, prediction), ...], "picture.png")

The outlines of all objects of an image are compared, whatever their category: a predicted pixel is
right within a small distance of a true outline, and a true one is missed without a predicted one
as near.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw

from pipeline.report.draw import (
    MIN_SIDE_PX,
    Color,
    Mask,
    Pixels,
    Shape,
    bold_font,
    font,
    overlay,
)

# Told apart by color-blind eyes, too, and all brighter than the dimmed photo.
RIGHT: Color = (80, 220, 160)
FALSE: Color = (255, 70, 200)
MISSED: Color = (255, 200, 40)

# The distance at which DAVIS counts two contours as one: this share of the image's diagonal.
_TOLERANCE = 0.008

_GAP_PX = 10
_HEAD_PX = 40
_FOOT_PX = 44
_NAME_PX = 24
_LINE_PX = 2.5
_GROUND: Color = (255, 255, 255)
_INK: Color = (30, 30, 30)
_TITLES = ("photo", "truth", "prediction", "boundary errors")


class Panel(NamedTuple):
    """One row of the picture."""

    name: str
    photo: Pixels
    """(H, W, 3) RGB."""
    truth: Sequence[Shape]
    prediction: Sequence[Shape]


class BoundaryErrors(NamedTuple):
    """Where the outlines of an image are right and wrong, pixel by pixel."""

    right: Mask
    """Predicted, and near a true outline."""
    false: Mask
    """Predicted, and not near one."""
    missed: Mask
    """True, and no predicted outline near."""

    def summary(self) -> str:
        """Say it in shares: of the predicted outlines, and of the true ones that were missed."""
        right, false, missed = (int(each.sum()) for each in self)
        total = right + false + missed
        if not total:
            return "no outlines"
        return f"right {right / total:.0%}  false {false / total:.0%}  missed {missed / total:.0%}"


def boundary_errors(truth: Sequence[Mask], prediction: Sequence[Mask]) -> BoundaryErrors:
    """Compare the outlines of two sets of masks of one image.

    Args:
        truth: (H, W) each; may be none.
        prediction: (H, W) each; may be none, but not both.
    """
    size_hw = next(iter((*truth, *prediction))).shape
    true, found = _outlines(truth, size_hw), _outlines(prediction, size_hw)
    reach_px = max(1, round(_TOLERANCE * float(np.hypot(*size_hw))))
    return BoundaryErrors(
        right=found & _near(true, reach_px),
        false=found & ~_near(true, reach_px),
        missed=true & ~_near(found, reach_px),
    )


def boundary_picture(
    panels: Sequence[Panel], path: str | Path, *, panel_px: int = MIN_SIDE_PX
) -> Image.Image:
    """Draw one row for each image and write the picture as PNG.

    Args:
        panels: the images, in order.
        path: where it goes; the folder is made.
        panel_px: width of a column.
    """
    if not panels:
        raise ValueError("a boundary picture needs at least one image, got none")
    rows = [_row(panel, panel_px) for panel in panels]
    width = 4 * panel_px + 5 * _GAP_PX
    height = _HEAD_PX + sum(row.height for row in rows) + _FOOT_PX
    picture = Image.new("RGB", (width, height), _GROUND)
    draw = ImageDraw.Draw(picture)
    for column, title in enumerate(_TITLES):
        x = _GAP_PX + column * (panel_px + _GAP_PX)
        draw.text((x, _HEAD_PX / 2), title, font=bold_font(20), fill=_INK, anchor="lm")
    y = _HEAD_PX
    for row in rows:
        picture.paste(row, (0, y))
        y += row.height
    _draw_legend(draw, y + _FOOT_PX // 2)
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.save(file, format="PNG")
    return picture


def _row(panel: Panel, panel_px: int) -> Image.Image:
    height_px = max(1, round(panel_px * panel.photo.shape[0] / panel.photo.shape[1]))
    photo = _fitted(panel.photo, (height_px, panel_px))
    errors, summary = _draw_errors(panel, photo)
    cells = [
        (Image.fromarray(photo), panel.name),
        (overlay(photo, panel.truth, min_side_px=0), _count(panel.truth)),
        (overlay(photo, panel.prediction, min_side_px=0), _count(panel.prediction)),
        (errors, summary),
    ]
    size = (4 * panel_px + 5 * _GAP_PX, height_px + _NAME_PX + _GAP_PX)
    row = Image.new("RGB", size, _GROUND)
    draw = ImageDraw.Draw(row)
    for column, (picture, text) in enumerate(cells):
        x = _GAP_PX + column * (panel_px + _GAP_PX)
        row.paste(picture, (x, 0))
        draw.text((x, height_px + 4), text, font=font(14), fill=_INK)
    return row


def _draw_errors(panel: Panel, photo: Pixels) -> tuple[Image.Image, str]:
    # Dimmed and gray: on it only the three colors speak.
    gray = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)
    drawn = np.repeat((gray * 0.4).astype(np.uint8)[:, :, None], 3, axis=2)
    if not panel.truth and not panel.prediction:
        return Image.fromarray(drawn), "no outlines"
    errors = boundary_errors(
        [each.mask for each in panel.truth], [each.mask for each in panel.prediction]
    )
    for mask, color in zip(errors, (RIGHT, FALSE, MISSED), strict=True):
        drawn[_visible(mask, photo.shape[:2])] = color
    return Image.fromarray(drawn), errors.summary()


def _draw_legend(draw: ImageDraw.ImageDraw, y: int) -> None:
    x = float(_GAP_PX)
    entries = (
        (RIGHT, "right: predicted, near a true outline"),
        (FALSE, "false: predicted, no true outline near"),
        (MISSED, "missed: true, no predicted outline near"),
    )
    for color, text in entries:
        draw.rounded_rectangle((x, y - 8, x + 16, y + 8), radius=3, fill=color, outline=_INK)
        draw.text((x + 24, y), text, font=font(15), fill=_INK, anchor="lm")
        x += 24 + draw.textlength(text, font=font(15)) + 32
    text = f"near: within {_TOLERANCE:.1%} of the image's diagonal"
    draw.text((x, y), text, font=font(15), fill=_INK, anchor="lm")


def _outlines(masks: Sequence[Mask], size_hw: tuple[int, ...]) -> Mask:
    """Join the one-pixel inner outlines of masks; an object ends where the image does."""
    joined = np.zeros(size_hw, dtype=bool)
    for mask in masks:
        padded = np.pad(mask.astype(np.uint8), 1)
        inside = cv2.erode(padded, np.ones((3, 3), np.uint8))[1:-1, 1:-1]
        joined |= mask & (inside == 0)
    return joined


def _near(outlines: Mask, reach_px: int) -> Mask:
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach_px + 1, 2 * reach_px + 1))
    return np.asarray(cv2.dilate(outlines.view(np.uint8), kernel), dtype=bool)


def _visible(mask: Mask, size_hw: tuple[int, ...]) -> Mask:
    """Bring an outline to the panel's size, thick enough to be seen."""
    scale = size_hw[1] / mask.shape[1]
    thick_px = int(np.ceil(_LINE_PX / scale))
    thick = cv2.dilate(mask.view(np.uint8), np.ones((thick_px, thick_px), np.uint8))
    size = (size_hw[1], size_hw[0])
    return np.asarray(cv2.resize(thick, size, interpolation=cv2.INTER_NEAREST_EXACT), dtype=bool)


def _fitted(photo: Pixels, size_hw: tuple[int, int]) -> Pixels:
    shrinks = size_hw[1] < photo.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    resized = cv2.resize(photo, (size_hw[1], size_hw[0]), interpolation=method)
    return np.asarray(resized, dtype=np.uint8)


def _count(shapes: Sequence[Shape]) -> str:
    return f"{len(shapes)} object" + ("" if len(shapes) == 1 else "s")
