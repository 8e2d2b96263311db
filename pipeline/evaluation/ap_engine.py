"""Run vernier, which matches detections to objects: the only module that calls it.

Mask and box AP equal those of pycocotools and lvis, boundary AP that of boundary-iou-api, to the
last bit (docs/metrics.md). Boundary AP (Cheng et al. 2021): the overlap of a pair is the lesser of
mask IoU and the IoU of the two bands inside the outlines (bands.py). Crowds are compared by mask.
"""

import contextlib
import io
import math
from importlib.metadata import version
from typing import Any, Literal, NamedTuple

import numpy as np
import vernier
from numpy.typing import NDArray
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

# Private: the public API (vernier.instance.Evaluator) takes no area of a detection, and returns no
# precision by category without polars. The version is pinned, and a test checks these names.
from vernier import _core

from pipeline.evaluation.coco_files import CheckedFiles, Entry

MetricName = Literal["segm", "bbox", "boundary"]

ENGINE = f"vernier {version('vernier')}"

Values = NDArray[np.float64]


class Scores(NamedTuple):
    """Scores of one metric."""

    values: list[float]
    """In the order of the program that defines them; NaN if undefined."""
    precision: Values
    """(IoU, recall, category) in the order of category ids; -1 where undefined."""
    objects: list[Entry]
    """The annotations that count."""
    notices: tuple[str, ...] = ()


def measure_coco(files: CheckedFiles, *, metric: MetricName, dilation_ratio: float) -> Scores:
    """Score checked files under COCO's rules."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = _index(files, with_boxes(files.annotations))
        found = _index(files, with_boxes(with_area(files.detections, metric=metric)))
        run = vernier.COCOeval(truth, found, metric, dilation_ratio=dilation_ratio)
        run.evaluate()
        run.accumulate()
        run.summarize()
    # IoU, recall, category, size, detections per image: all sizes, 100 detections.
    return Scores(
        values=[average_valid(np.asarray([score])) for score in run.stats],
        precision=np.asarray(run.eval["precision"])[..., 0, -1],
        objects=[entry for entry in files.annotations if not entry["iscrowd"]],
    )


def run_lvis(
    truth: bytes,
    detections: list[Entry],
    *,
    metric: MetricName,
    dilation_ratio: float,
    max_detections: int,
) -> tuple[Values, Values]:
    """Evaluate under LVIS's rules.

    Args:
        truth: an LVIS annotation file.
        detections: each with its area.
        metric: mask, box or boundary AP.
        dilation_ratio: width of the boundary band, in image diagonals.
        max_detections: largest number of detections per image.

    Returns:
        Precision by IoU, recall, category and size, and recall by IoU, category and size; -1 where
        undefined.
    """
    dataset = _core.CocoDataset.from_lvis_json(truth)
    options: dict[str, Any] = {
        "parity_mode": "strict",
        "max_dets_per_image": max_detections,
        "use_cats": True,
        "dt_area": "supplied",
    }
    rows: list[Any] = with_boxes(detections)
    if metric == "bbox":
        grid = _core.evaluate_bbox_grid(dataset, rows, **options)
    elif metric == "segm":
        grid = _core.evaluate_segm_grid(dataset, rows, **options)
    else:
        options["dilation_ratio"] = dilation_ratio
        grid = _core.evaluate_boundary_grid(dataset, rows, **options)
    counts = grid.accumulate([max_detections])
    return np.asarray(counts.precision)[..., 0], np.asarray(counts.recall)[..., 0]


def average_valid(values: Values) -> float:
    """Average all values but -1, which means undefined; NaN if there are none."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else math.nan


def with_boxes(entries: list[Entry]) -> list[Entry]:
    """Copy entries, since evaluators write into them, and add the bbox that vernier requires."""
    if not entries or "segmentation" not in entries[0]:
        return [dict(entry) for entry in entries]
    boxes = mask_api.toBbox([entry["segmentation"] for entry in entries]).tolist()
    return [{"bbox": box} | entry for entry, box in zip(entries, boxes, strict=True)]


def with_area(detections: list[Entry], *, metric: MetricName) -> list[Entry]:
    """Add the area by which a detection is small, medium or large: of its box or its mask."""

    def area_of(entry: Entry) -> float:
        width, height = entry["bbox"][2:] if metric == "bbox" else (entry["mask_area_px"], 1)
        return float(width * height)

    return [entry | {"area": area_of(entry), "iscrowd": 0} for entry in detections]


def _index(files: CheckedFiles, annotations: list[Entry]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": files.images,
        "categories": files.categories,
        "annotations": annotations,
    }
    coco.createIndex()
    return coco
