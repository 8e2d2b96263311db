"""The band inside an outline that boundary AP compares.

Boundary IoU (Cheng et al. 2021) compares the pixels of a mask that are at most d pixels from its
outline. d is a share of the image diagonal, the dilation ratio; the larger it is, the closer
boundary AP is to mask AP.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_api

from pipeline.data.manifest import Manifest
from pipeline.errors import RecipeError
from pipeline.evaluation.coco_files import CheckedFiles
from pipeline.recipe import EvaluationConfig

COCO_DILATION_RATIO = 0.02
"""boundary-iou-api's value for COCO and LVIS: 16 px at 640 x 480."""

CITYSCAPES_DILATION_RATIO = 0.005
"""boundary-iou-api's value for Cityscapes: 11 px at 2048 x 1024."""

_MOSTLY_THIN = 0.8


def check_ratio(dilation_ratio: float) -> None:
    """Check a dilation ratio.

    Raises:
        RecipeError: it is not between 0 and 1.
    """
    if not 0 < dilation_ratio < 1:
        raise RecipeError(
            f"dilation ratio {dilation_ratio:g}: it is the band's width as a share of the image "
            f"diagonal, above 0 and below 1. COCO and LVIS use {COCO_DILATION_RATIO}, Cityscapes "
            f"{CITYSCAPES_DILATION_RATIO}"
        )


def choose_ratio(evaluation: EvaluationConfig, manifest: Manifest) -> float:
    """Return the dilation ratio of an evaluation: the recipe's, or that of the data set."""
    default = CITYSCAPES_DILATION_RATIO if manifest.is_cityscapes else COCO_DILATION_RATIO
    return evaluation.dilation_ratio or default


def band_px(*, height: int, width: int, dilation_ratio: float = COCO_DILATION_RATIO) -> int:
    """Compute the width of the band for an image size (boundary-iou-api: mask_to_boundary)."""
    return max(1, round(dilation_ratio * math.hypot(height, width)))


def mask_to_boundary(mask: NDArray[np.bool_], *, width_px: int) -> NDArray[np.bool_]:
    """Select the pixels of a mask that are within a chessboard distance from outside.

    Everything beyond the array counts as outside: a mask cut off by the image has a boundary there.

    Args:
        mask: (h, w), an image or a crop that holds the whole mask.
        width_px: the distance; 1 selects the outermost ring.
    """
    side = 2 * width_px + 1
    padded = np.pad(mask.view(np.uint8), 1)
    inside = cv2.erode(padded, np.ones((side, side), np.uint8))[1:-1, 1:-1].astype(np.bool_)
    return np.logical_and(mask, ~inside)


def crop_slices(mask: NDArray[np.bool_], *, margin_px: int = 0) -> tuple[slice, slice]:
    """Find the rows and columns of the smallest crop around a mask; (0:0, 0:0) if it is empty."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return slice(0, 0), slice(0, 0)
    return (
        slice(max(rows[0] - margin_px, 0), rows[-1] + 1 + margin_px),
        slice(max(columns[0] - margin_px, 0), columns[-1] + 1 + margin_px),
    )


def format_percent(dilation_ratio: float) -> str:
    """Format a ratio, such as 0.5%."""
    return f"{100 * dilation_ratio:g}%"


def warn_thin_objects(files: CheckedFiles, *, dilation_ratio: float) -> tuple[str, ...]:
    """Warn if the band covers most objects entirely, so that boundary AP equals mask AP."""
    objects = [entry for entry in files.annotations if not entry["iscrowd"]]
    if not objects:
        return ()
    bands = {
        image["id"]: band_px(
            height=image["height"], width=image["width"], dilation_ratio=dilation_ratio
        )
        for image in files.images
    }
    boxes_xywh = mask_api.toBbox([entry["segmentation"] for entry in objects])
    reach_px = np.array([2 * bands[entry["image_id"]] for entry in objects])
    thin = int((boxes_xywh[:, 2:].min(axis=1) <= reach_px).sum())
    if thin < _MOSTLY_THIN * len(objects):
        return ()
    return (
        f"{thin} of {len(objects)} objects are no wider than twice the boundary band "
        f"({min(bands.values())} to {max(bands.values())} px, {format_percent(dilation_ratio)} of "
        "the image diagonal). The band covers all of such an object: its boundary IoU is its mask "
        "IoU",
    )
