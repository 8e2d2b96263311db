"""Pictures of a report: found objects and label maps, each beside its truth and its errors."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.evaluation.bands import crop_slices, mask_to_boundary
from pipeline.report.boundary_picture import FALSE, MISSED, RIGHT
from pipeline.report.draw import Color, Mask, Pixels, resize_nearest
from pipeline.report.label_picture import ClassColor

TRUTH: Color = (86, 180, 233)
PREDICTION: Color = (230, 159, 0)
WRONG = FALSE

_SIDE_PX = 300
_FRAME_PX = 420
_GAP_PX = 6
_CONTEXT = 1.35
_MIN_CROP_PX = 24
_DIM = 0.4
_BEYOND = 128

Labels = NDArray[np.uint8]


def draw_instance(photo: Pixels, true: Mask, found: Mask, *, width_px: int) -> Image.Image:
    """Draw an object four times: its photo, its truth, its prediction and its error band.

    The band's colors are the parts of the boundary IoU: right is the intersection.

    Args:
        photo: (H, W, 3) RGB.
        true: (H, W).
        found: (H, W).
        width_px: width of the boundary band, in pixels of the photo.
    """
    crop = _choose_square(true | found)
    bands = [_cut(mask_to_boundary(mask, width_px=width_px), crop) for mask in (true, found)]
    photo, true, found = (_cut(each, crop) for each in (photo, true, found))
    dimmed = (photo * _DIM).astype(np.uint8)
    for mask, color in (
        (bands[0] & bands[1], RIGHT),
        (bands[1] & ~bands[0], FALSE),
        (bands[0] & ~bands[1], MISSED),
    ):
        dimmed[mask] = color
    return join_panels(
        [
            _enlarge(photo),
            _draw_mask(photo, true, TRUTH),
            _draw_mask(photo, found, PREDICTION),
            _enlarge(dimmed, smooth=False),
        ]
    )


def draw_objects(photo: Pixels, true: Sequence[Mask], found: Sequence[Mask]) -> Image.Image:
    """Draw a photo three times: as it is, with all true masks, and with all predicted ones.

    Args:
        photo: (H, W, 3) RGB.
        true: each (H, W).
        found: each (H, W).
    """
    small = _fit_frame(photo)
    panels = [small]
    for masks, color in ((true, TRUTH), (found, PREDICTION)):
        panel = small.copy()
        for mask in masks:
            _outline(panel, resize_nearest(mask, panel.shape[:2]), color)
        panels.append(panel)
    return join_panels(panels)


def draw_frame(
    photo: Pixels, true: Labels, found: Labels, classes: Sequence[ClassColor], *, void: int
) -> Image.Image:
    """Draw a frame four times: its photo, its truth, its prediction and its wrong pixels.

    Args:
        photo: (H, W, 3) RGB.
        true: (H, W) class indices, or void.
        found: (H, W) class indices.
        classes: color by class index.
        void: value of pixels that do not count.
    """
    small, wrong = _fit_frame(photo), (true != found) & (true != void)
    size_hw = small.shape[:2]
    panels: list[Pixels] = [small]
    for labels in (true, found):
        resized, panel = resize_nearest(labels, size_hw), small * 0.45
        for each in classes:
            panel[resized == each.value] += np.array(each.color) * 0.55
        panels.append(panel.astype(np.uint8))
    dimmed = (small * _DIM).astype(np.uint8)
    dimmed[resize_nearest(wrong, size_hw)] = WRONG
    return join_panels([*panels, dimmed])


def css_color(color: Color) -> str:
    """Return a color as CSS."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def _choose_square(mask: Mask) -> tuple[int, int, int]:
    """Choose the top, the left and the side of a square around a mask, with surroundings.

    It is moved into the image where it fits.
    """
    slices = crop_slices(mask)
    side = max(round(_CONTEXT * max(each.stop - each.start for each in slices)), _MIN_CROP_PX)
    starts = []
    for each, length in zip(slices, mask.shape, strict=True):
        start = (each.start + each.stop - side) // 2
        inside = min(max(start, 0), length - side)
        starts.append(inside if side <= length else (length - side) // 2)
    return starts[0], starts[1], side


def _cut(values: NDArray[Any], square: tuple[int, int, int]) -> NDArray[Any]:
    """Cut a square out of (H, W, ...); beyond the edges there is gray, or False."""
    top, left, side = square
    beyond = 0 if values.dtype == np.bool_ else _BEYOND
    cut = np.full((side, side, *values.shape[2:]), beyond, values.dtype)
    height, width = values.shape[:2]
    y0, y1 = max(top, 0), min(top + side, height)
    x0, x1 = max(left, 0), min(left + side, width)
    cut[y0 - top : y1 - top, x0 - left : x1 - left] = values[y0:y1, x0:x1]
    return cut


def _enlarge(photo: Pixels, *, smooth: bool = True) -> Pixels:
    shrinks = len(photo) > _SIDE_PX
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    method = method if smooth else cv2.INTER_NEAREST_EXACT
    return np.asarray(cv2.resize(photo, (_SIDE_PX, _SIDE_PX), interpolation=method), np.uint8)


def _fit_frame(photo: Pixels) -> Pixels:
    height_px = max(1, round(_FRAME_PX * photo.shape[0] / photo.shape[1]))
    resized = cv2.resize(photo, (_FRAME_PX, height_px), interpolation=cv2.INTER_AREA)
    return np.asarray(resized, dtype=np.uint8)


def _draw_mask(photo: Pixels, mask: Mask, color: Color) -> Pixels:
    drawn = _enlarge(photo)
    _outline(drawn, resize_nearest(np.ascontiguousarray(mask), drawn.shape[:2]), color)
    return drawn


def _outline(drawn: Pixels, mask: Mask, color: Color) -> None:
    """Color a mask and its outline in place."""
    drawn[mask] = drawn[mask] * 0.6 + np.array(color) * 0.4
    contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.polylines(drawn, list(contours), True, color, 2, cv2.LINE_AA)  # noqa: FBT003


def join_panels(panels: Sequence[Pixels]) -> Image.Image:
    """Join panels (H, W, 3) of one size side by side."""
    height, width = panels[0].shape[:2]
    joined = np.full((height, len(panels) * (width + _GAP_PX) - _GAP_PX, 3), 255, np.uint8)
    for index, panel in enumerate(panels):
        left = index * (width + _GAP_PX)
        joined[:, left : left + width] = panel
    return Image.fromarray(joined)
