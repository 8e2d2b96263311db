"""The band inside an outline that boundary AP compares: its width, its pixels, where it is blind.

Boundary IoU (Cheng et al. 2021) looks at the pixels of a mask that are at most d pixels from its
outline. d is a share of the image's diagonal, the dilation ratio; the larger it is, the more
boundary AP becomes mask AP.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_api

from pipeline.errors import RecipeError
from pipeline.evaluation.coco_files import CheckedFiles

COCO_DILATION_RATIO = 0.02
"""boundary-iou-api's value for COCO and LVIS: 16 px at 640 x 480."""

CITYSCAPES_DILATION_RATIO = 0.005
"""boundary-iou-api's value for Cityscapes: 11 px at 2048 x 1024."""

_MOSTLY_THIN = 0.8


def check_ratio(dilation_ratio: float) -> None:
    """Refuse what is no share of a diagonal.

    Raises:
        RecipeError: the ratio is not between 0 and 1.
    """
    if not 0 < dilation_ratio < 1:
        raise RecipeError(
            f"dilation ratio {dilation_ratio:g}: it is the band's width as a share of the image's "
            f"diagonal, above 0 and below 1; COCO and LVIS take {COCO_DILATION_RATIO}, Cityscapes "
            f"{CITYSCAPES_DILATION_RATIO}"
        )


def band_px(*, height: int, width: int, dilation_ratio: float = COCO_DILATION_RATIO) -> int:
    """Give the width of the band of an image (boundary-iou-api: mask_to_boundary)."""
    return max(1, round(dilation_ratio * math.hypot(height, width)))


def band_of(mask: NDArray[np.bool_], *, width_px: int) -> NDArray[np.bool_]:
    """Give the pixels of a mask that are at most so many king's steps from outside.

    Beyond the array's border is outside: a mask that is cut off by the image has a boundary there.

    Args:
        mask: (h, w), an image or any part of it that holds the whole mask.
        width_px: 1 takes the outermost ring.
    """
    side = 2 * width_px + 1
    padded = np.pad(mask.view(np.uint8), 1)
    inside = cv2.erode(padded, np.ones((side, side), np.uint8))[1:-1, 1:-1].astype(np.bool_)
    return np.logical_and(mask, ~inside)


def percent(dilation_ratio: float) -> str:
    """Show a ratio, such as 0.5%."""
    return f"{100 * dilation_ratio:g}%"


def about_thin(files: CheckedFiles, *, dilation_ratio: float) -> tuple[str, ...]:
    """Say it when boundary AP cannot tell more than mask AP: the band fills the objects."""
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
    reach = np.array([2 * bands[entry["image_id"]] for entry in objects])
    thin = int((boxes_xywh[:, 2:].min(axis=1) <= reach).sum())
    if thin < _MOSTLY_THIN * len(objects):
        return ()
    return (
        f"{thin} of {len(objects)} objects are no wider than twice the boundary band "
        f"({min(bands.values())} to {max(bands.values())} px, {percent(dilation_ratio)} of the "
        "image diagonal), which then covers all of them: for these, boundary AP says what mask AP "
        "says",
    )
