"""Match the detections of a run with the truth, object by object, for what a single AP hides.

pycocotools matches, under its own rules, at a mask IoU of 0.5: first within each category, which
tells right from wrong detections and gives every found object its boundary IoU, then regardless of
the category, which tells what is taken for what.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.evaluation.mask_quality import compare_masks, decode_mask

IOU = 0.5
"""Smallest mask IoU of a match."""

SCORE = 0.5
"""Detections with a lower score are not part of the confusion of categories."""

_MAX_DETECTIONS = 100

Entry = Mapping[str, Any]


class Pair(NamedTuple):
    """An object that was found."""

    truth: Entry
    """An annotation of the truth."""
    detection: Entry
    """A row of the results file."""
    boundary_iou: float


class Matches(NamedTuple):
    """All objects and detections of some images."""

    pairs: list[Pair]
    """Found objects, the lowest boundary IoU first."""
    missed: int
    """Objects that no detection of their category matches."""
    scores: NDArray[np.float64]
    """(N,) of all detections but those that match a crowd."""
    is_right: NDArray[np.bool_]
    """(N,) whether each detection matches an object of its category."""
    confusion: NDArray[np.int64]
    """(K + 1, K + 1) objects by true and by predicted category, in the order of the truth's
    categories. The last row counts detections without an object, the last column objects without
    a detection."""


def match_detections(
    truth: Mapping[str, Any], rows: Sequence[Entry], *, dilation_ratio: float
) -> Matches:
    """Match detections with the truth.

    Args:
        truth: in COCO's layout, with masks as RLE.
        rows: of a COCO results file, of images of the truth.
        dilation_ratio: width of the boundary band, in image diagonals.
    """
    evaluated = _Evaluator(truth, rows)
    matched = evaluated.match(by_category=True)
    pairs = [
        _compare(evaluated.truth[key], evaluated.detections[found], dilation_ratio)
        for found, key in matched.found.items()
        if key and key not in matched.crowds
    ]
    counted = [key for key in matched.found if matched.found[key] not in matched.crowds]
    return Matches(
        pairs=sorted(pairs, key=lambda pair: pair.boundary_iou),
        missed=len(matched.objects) - len(pairs),
        scores=np.array([evaluated.detections[key]["score"] for key in counted], np.float64),
        is_right=np.array([matched.found[key] != 0 for key in counted], np.bool_),
        confusion=_count_confusion(evaluated),
    )


def pair_in_order(
    truth: Mapping[str, Any], rows: Sequence[Entry], *, dilation_ratio: float
) -> list[Pair]:
    """Pair each object with its own mask, where there is one for each; lowest boundary IoU first.

    Args:
        truth: in COCO's layout, with masks as RLE; crowds are left out.
        rows: one for each object of an image, in their order.
        dilation_ratio: width of the boundary band, in image diagonals.

    Raises:
        ValueError: an image has another number of objects than of masks.
    """
    by_image: dict[int, tuple[list[Entry], list[Entry]]] = {
        image["id"]: ([], []) for image in truth["images"]
    }
    for each in truth["annotations"]:
        if not each["iscrowd"]:
            by_image[each["image_id"]][0].append(each)
    for row in rows:
        by_image[row["image_id"]][1].append(row)
    pairs = [
        _compare(true, found, dilation_ratio)
        for objects, masks in by_image.values()
        for true, found in zip(objects, masks, strict=True)
    ]
    return sorted(pairs, key=lambda pair: pair.boundary_iou)


class _Matched(NamedTuple):
    found: dict[int, int]
    """Id of the matched annotation by id of the detection; 0 is none."""
    objects: set[int]
    """Ids of the annotations that count."""
    crowds: set[int]


class _Evaluator:
    """pycocotools over one truth and its detections."""

    def __init__(self, truth: Mapping[str, Any], rows: Sequence[Entry]) -> None:
        # pycocotools writes into its input.
        self.truth = {each["id"]: dict(each) for each in truth["annotations"]}
        self.detections = {
            number: dict(row)
            | {
                "id": number,
                "area": float(mask_api.area(row["segmentation"])),
                "iscrowd": 0,
                "bbox": [0, 0, 0, 0],
            }
            for number, row in enumerate(rows, start=1)
        }
        self.categories = [each["id"] for each in truth["categories"]]
        self._images = truth["images"]

    def match(self, *, by_category: bool, min_score: float = 0.0) -> _Matched:
        kept = [each for each in self.detections.values() if each["score"] >= min_score]
        with contextlib.redirect_stdout(io.StringIO()):
            run = COCOeval(self._index(self.truth.values()), self._index(kept), "segm")
            run.params.iouThrs = np.array([IOU])
            run.params.areaRng, run.params.areaRngLbl = [[0, 1e10]], ["all"]
            run.params.maxDets = [_MAX_DETECTIONS]
            run.params.useCats = int(by_category)
            run.evaluate()
        found: dict[int, int] = {}
        for image in filter(None, run.evalImgs):
            found |= dict(zip(image["dtIds"], map(int, image["dtMatches"][0]), strict=True))
        crowds = {key for key, each in self.truth.items() if each["iscrowd"]}
        return _Matched(found, set(self.truth) - crowds, crowds)

    def _index(self, annotations: Any) -> COCO:  # noqa: ANN401  any iterable of entries
        coco = COCO()
        coco.dataset = {
            "images": self._images,
            "categories": [{"id": each} for each in self.categories],
            "annotations": [dict(each) for each in annotations],
        }
        coco.createIndex()
        return coco


def _count_confusion(evaluated: _Evaluator) -> NDArray[np.int64]:
    matched = evaluated.match(by_category=False, min_score=SCORE)
    place = {key: index for index, key in enumerate(evaluated.categories)}
    none = len(place)
    counts = np.zeros((none + 1, none + 1), np.int64)
    for detection, key in matched.found.items():
        if key in matched.crowds:
            continue
        row = place[evaluated.truth[key]["category_id"]] if key else none
        counts[row, place[evaluated.detections[detection]["category_id"]]] += 1
    for key in matched.objects - set(matched.found.values()):
        counts[place[evaluated.truth[key]["category_id"]], none] += 1
    return counts


def _compare(truth: Entry, detection: Entry, dilation_ratio: float) -> Pair:
    masks = (decode_mask(each["segmentation"]) for each in (truth, detection))
    true, found = masks
    return Pair(truth, detection, compare_masks(true, found, ratios=(dilation_ratio,))[1])
