"""How good masks are when their boxes are given: no detector's luck is in these numbers.

AP asks whether objects are found, ranked and outlined at once. With the boxes of the truth only the
outlining is left, and it can be said of every object: the overlap of its mask, and of the bands of
d pixels inside the two outlines (boundary IoU, Cheng et al. 2021; d is a share of the image's
diagonal).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_api

from pipeline.evaluation.bands import COCO_DILATION_RATIO, band_of, band_px

LARGE_PX = 96**2
"""Area from which COCO calls an object large."""

THRESHOLDS = (0.5, 0.75, 0.9)

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskQuality:
    """Of each object, in the order of the truth."""

    mask_iou: Floats
    boundary_iou: Floats
    area_px: Floats

    def means(self) -> dict[str, float]:
        """Give the means, the shares of objects from a threshold on, and both for large objects.

        Returns:
            mask_iou, mask_iou_over_50, ..., mask_iou_large, and the same of boundary_iou; NaN where
            there are no such objects.
        """
        large = self.area_px >= LARGE_PX
        named = {}
        for name, iou in (("mask_iou", self.mask_iou), ("boundary_iou", self.boundary_iou)):
            named[name] = _mean(iou)
            for threshold in THRESHOLDS:
                named[f"{name}_over_{threshold * 100:.0f}"] = _mean(iou >= threshold)
            named[f"{name}_large"] = _mean(iou[large])
        return named


def quality_in_true_boxes(
    truth: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    *,
    dilation_ratio: float = COCO_DILATION_RATIO,
) -> MaskQuality:
    """Compare the masks that were drawn in the boxes of a truth with those of the truth.

    Args:
        truth: in COCO's layout, with masks as run lengths; crowds are left out.
        rows: of a COCO results file, for each image one for each of its objects, in their order.
        dilation_ratio: width of the boundaries' bands, in image diagonals.
    """
    drawn = defaultdict(list)
    for row in rows:
        drawn[row["image_id"]].append(row["segmentation"])
    mask_iou, boundary_iou, area_px = [], [], []
    of_image: dict[int, list[Any]] = {image["id"]: [] for image in truth["images"]}
    for annotation in truth["annotations"]:
        if not annotation["iscrowd"]:
            of_image[annotation["image_id"]].append(annotation)
    for image_id, annotations in of_image.items():
        for annotation, found in zip(annotations, drawn[image_id], strict=True):
            ious = _ious(
                _decoded(annotation["segmentation"]), _decoded(found), ratio=dilation_ratio
            )
            mask_iou.append(ious[0])
            boundary_iou.append(ious[1])
            area_px.append(annotation["area"])
    return MaskQuality(
        mask_iou=np.array(mask_iou, dtype=np.float64),
        boundary_iou=np.array(boundary_iou, dtype=np.float64),
        area_px=np.array(area_px, dtype=np.float64),
    )


def _ious(
    true: NDArray[np.bool_], found: NDArray[np.bool_], *, ratio: float
) -> tuple[float, float]:
    width_px = band_px(height=true.shape[0], width=true.shape[1], dilation_ratio=ratio)
    # All that happens, happens around the two masks; one more row of nothing keeps it the same.
    rows, columns = (np.flatnonzero((true | found).any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return 0.0, 0.0
    around = tuple(slice(max(each[0] - 1, 0), each[-1] + 2) for each in (rows, columns))
    true, found = true[around], found[around]
    bands = band_of(true, width_px=width_px), band_of(found, width_px=width_px)
    return _iou(true, found), _iou(*bands)


def _iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


def _decoded(segmentation: Mapping[str, Any]) -> NDArray[np.bool_]:
    return np.asarray(mask_api.decode(segmentation), dtype=np.bool_)


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if values.size else float("nan")
