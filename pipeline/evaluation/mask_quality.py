"""Quality of masks predicted in the true boxes, independent of detection and ranking.

Per object: mask IoU, and the IoU of the bands of d pixels inside the two outlines (boundary IoU,
Cheng et al. 2021; d is a share of the image diagonal).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_api

from pipeline.evaluation.bands import COCO_DILATION_RATIO, band_px, crop_slices, mask_to_boundary

LARGE_PX = 96**2
"""Smallest area of a large object in COCO."""

THRESHOLDS = (0.5, 0.75, 0.9)

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskQuality:
    """IoU of each object, in the order of the truth."""

    mask_iou: Floats
    boundary_iou: Floats
    area_px: Floats

    def means(self) -> dict[str, float]:
        """Average over all objects and over large ones, and compute the shares above thresholds.

        Returns:
            mask_iou, mask_iou_over_50, ..., mask_iou_large, and the same for boundary_iou; NaN if
            there are no such objects.
        """
        large = self.area_px >= LARGE_PX
        means = {}
        for name, iou in (("mask_iou", self.mask_iou), ("boundary_iou", self.boundary_iou)):
            means[name] = _mean(iou)
            for threshold in THRESHOLDS:
                means[f"{name}_over_{threshold * 100:.0f}"] = _mean(iou >= threshold)
            means[f"{name}_large"] = _mean(iou[large])
        return means


def measure_mask_quality(
    truth: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    *,
    dilation_ratio: float = COCO_DILATION_RATIO,
) -> MaskQuality:
    """Compare masks predicted in the boxes of a truth with the masks of the truth.

    Args:
        truth: in COCO's layout, with masks as RLE; crowds are left out.
        rows: of a COCO results file, one per object, in the order of the image's objects.
        dilation_ratio: width of the bands, in image diagonals.
    """
    predicted = defaultdict(list)
    for row in rows:
        predicted[row["image_id"]].append(row["segmentation"])
    mask_iou, boundary_iou, area_px = [], [], []
    by_image: dict[int, list[Any]] = {image["id"]: [] for image in truth["images"]}
    for annotation in truth["annotations"]:
        if not annotation["iscrowd"]:
            by_image[annotation["image_id"]].append(annotation)
    for image_id, annotations in by_image.items():
        for annotation, found in zip(annotations, predicted[image_id], strict=True):
            ious = compare_masks(
                decode_mask(annotation["segmentation"]),
                decode_mask(found),
                ratios=(dilation_ratio,),
            )
            mask_iou.append(ious[0])
            boundary_iou.append(ious[1])
            area_px.append(annotation["area"])
    return MaskQuality(
        mask_iou=np.array(mask_iou, dtype=np.float64),
        boundary_iou=np.array(boundary_iou, dtype=np.float64),
        area_px=np.array(area_px, dtype=np.float64),
    )


def compare_masks(
    true: NDArray[np.bool_], found: NDArray[np.bool_], *, ratios: Sequence[float]
) -> list[float]:
    """Compute the mask IoU of two masks, then the IoU of their bands of each width.

    Args:
        true: (H, W).
        found: (H, W).
        ratios: widths of the bands, in image diagonals.
    """
    height, width = true.shape
    crop = crop_slices(true | found)
    true, found = true[crop], found[crop]
    ious = [_iou(true, found)]
    for ratio in ratios:
        width_px = band_px(height=height, width=width, dilation_ratio=ratio)
        bands = (mask_to_boundary(each, width_px=width_px) for each in (true, found))
        ious.append(_iou(*bands))
    return ious


def decode_mask(rle: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Decode compressed RLE to a mask (H, W)."""
    return np.asarray(mask_api.decode(rle), dtype=np.bool_)


def _iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if values.size else float("nan")
