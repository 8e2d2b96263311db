"""Draw photo, truth, prediction and boundary errors side by side.

    draw_boundary_errors([Panel("000017.jpg", photo, truth, prediction), ...], "picture.png")

The outlines of all instances are compared, independent of category: a predicted outline pixel is
right if a true outline is near, and a true one is missed if no predicted outline is near.
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
    Instance,
    Mask,
    Pixels,
    draw_instances,
    font,
    resize_nearest,
    thicken,
)

# Distinguishable by color-blind readers, and brighter than the dimmed photo.
RIGHT: Color = (80, 220, 160)
FALSE: Color = (255, 70, 200)
MISSED: Color = (255, 200, 40)

# Tolerance of the DAVIS boundary measure, as a share of the image diagonal.
_TOLERANCE = 0.008

_GAP_PX = 10
_HEAD_PX = 40
_FOOT_PX = 44
_NAME_PX = 24
_LINE_PX = 2.5
_BACKGROUND: Color = (255, 255, 255)
_INK: Color = (30, 30, 30)
_TITLES = ("photo", "truth", "prediction", "boundary errors")


class Panel(NamedTuple):
    """One row of the picture."""

    name: str
    photo: Pixels
    """(H, W, 3) RGB."""
    truth: Sequence[Instance]
    prediction: Sequence[Instance]


class BoundaryErrors(NamedTuple):
    """Outline pixels of an image, as masks."""

    right: Mask
    """Predicted, near a true outline."""
    false: Mask
    """Predicted, no true outline near."""
    missed: Mask
    """True, no predicted outline near."""

    def summary(self) -> str:
        """Format the shares of right, false and missed pixels."""
        right, false, missed = (int(each.sum()) for each in self)
        total = right + false + missed
        if not total:
            return "no outlines"
        return f"right {right / total:.0%}  false {false / total:.0%}  missed {missed / total:.0%}"


def compare_outlines(truth: Sequence[Mask], prediction: Sequence[Mask]) -> BoundaryErrors:
    """Compare the outlines of true and predicted masks of one image.

    Args:
        truth: (H, W) each; may be empty.
        prediction: (H, W) each; may be empty, if truth is not.
    """
    size_hw = next(iter((*truth, *prediction))).shape
    true, found = _find_outlines(truth, size_hw), _find_outlines(prediction, size_hw)
    reach_px = max(1, round(_TOLERANCE * float(np.hypot(*size_hw))))
    return BoundaryErrors(
        right=found & _dilate_disk(true, reach_px),
        false=found & ~_dilate_disk(true, reach_px),
        missed=true & ~_dilate_disk(found, reach_px),
    )


def draw_boundary_errors(
    panels: Sequence[Panel], path: str | Path, *, panel_px: int = MIN_SIDE_PX
) -> Image.Image:
    """Draw one row for each image and write the picture as PNG.

    Args:
        panels: the images, in order.
        path: of the PNG; its folder is created.
        panel_px: width of a column.
    """
    if not panels:
        raise ValueError("a boundary picture needs at least one image, got none")
    rows = [_draw_row(panel, panel_px) for panel in panels]
    width = 4 * panel_px + 5 * _GAP_PX
    height = _HEAD_PX + sum(row.height for row in rows) + _FOOT_PX
    picture = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for column, title in enumerate(_TITLES):
        x = _GAP_PX + column * (panel_px + _GAP_PX)
        draw.text((x, _HEAD_PX / 2), title, font=font(20, bold=True), fill=_INK, anchor="lm")
    y = _HEAD_PX
    for row in rows:
        picture.paste(row, (0, y))
        y += row.height
    _draw_legend(draw, y + _FOOT_PX // 2)
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.save(file, format="PNG")
    return picture


def _draw_row(panel: Panel, panel_px: int) -> Image.Image:
    height_px = max(1, round(panel_px * panel.photo.shape[0] / panel.photo.shape[1]))
    photo = _resize_photo(panel.photo, (height_px, panel_px))
    errors, summary = _draw_errors(panel, photo)
    cells = [
        (Image.fromarray(photo), panel.name),
        (draw_instances(photo, panel.truth, min_side_px=0), _count_objects(panel.truth)),
        (draw_instances(photo, panel.prediction, min_side_px=0), _count_objects(panel.prediction)),
        (errors, summary),
    ]
    size = (4 * panel_px + 5 * _GAP_PX, height_px + _NAME_PX + _GAP_PX)
    row = Image.new("RGB", size, _BACKGROUND)
    draw = ImageDraw.Draw(row)
    for column, (picture, text) in enumerate(cells):
        x = _GAP_PX + column * (panel_px + _GAP_PX)
        row.paste(picture, (x, 0))
        draw.text((x, height_px + 4), text, font=font(14), fill=_INK)
    return row


def _draw_errors(panel: Panel, photo: Pixels) -> tuple[Image.Image, str]:
    # Gray and dimmed, so that the three colors stand out.
    gray = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)
    drawn = np.repeat((gray * 0.4).astype(np.uint8)[:, :, None], 3, axis=2)
    if not panel.truth and not panel.prediction:
        return Image.fromarray(drawn), "no outlines"
    errors = compare_outlines(
        [each.mask for each in panel.truth], [each.mask for each in panel.prediction]
    )
    for mask, color in zip(errors, (RIGHT, FALSE, MISSED), strict=True):
        # Thicken first: a one-pixel outline would vanish when a large photo is reduced.
        thick = thicken(mask, int(np.ceil(_LINE_PX / (photo.shape[1] / mask.shape[1]))))
        drawn[resize_nearest(thick, photo.shape[:2])] = color
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


def _find_outlines(masks: Sequence[Mask], size_hw: tuple[int, ...]) -> Mask:
    """Join the one-pixel inner outlines of masks; the image border counts as outside."""
    joined = np.zeros(size_hw, dtype=bool)
    for mask in masks:
        padded = np.pad(mask.astype(np.uint8), 1)
        inside = cv2.erode(padded, np.ones((3, 3), np.uint8))[1:-1, 1:-1]
        joined |= mask & (inside == 0)
    return joined


def _dilate_disk(outlines: Mask, reach_px: int) -> Mask:
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach_px + 1, 2 * reach_px + 1))
    return np.asarray(cv2.dilate(outlines.view(np.uint8), kernel), dtype=bool)


def _resize_photo(photo: Pixels, size_hw: tuple[int, int]) -> Pixels:
    shrinks = size_hw[1] < photo.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    resized = cv2.resize(photo, (size_hw[1], size_hw[0]), interpolation=method)
    return np.asarray(resized, dtype=np.uint8)


def _count_objects(instances: Sequence[Instance]) -> str:
    return f"{len(instances)} object" + ("" if len(instances) == 1 else "s")
