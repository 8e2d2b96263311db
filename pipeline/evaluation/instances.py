"""Evaluation of instance models: detections of each piece, then mask, boundary and box AP of all.

A federated split (LVIS) is measured by LVIS's rules, all others by COCO's. Instances of Cityscapes
are measured by COCO's too, with the narrower band that boundary-iou-api has for them: its official
AP needs more of the truth than shards hold, and is measured from files (cityscapes_submission.py).
"""

import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from pipeline import storage
from pipeline.data.collate import collate_for_test
from pipeline.data.manifest import Manifest, read_manifest
from pipeline.errors import DatasetError
from pipeline.evaluation.bands import CITYSCAPES_DILATION_RATIO, COCO_DILATION_RATIO
from pipeline.evaluation.cityscapes_submission import write_submission
from pipeline.evaluation.coco_files import write_detections
from pipeline.evaluation.infer import Detection, detect, to_results
from pipeline.evaluation.lvis import LvisMetrics, evaluate_lvis_metrics
from pipeline.evaluation.mask_quality import quality_in_true_boxes
from pipeline.evaluation.metrics import MetricName, Metrics, evaluate_metrics, flat_names
from pipeline.evaluation.result import Evaluation, Row, Work
from pipeline.evaluation.split_reader import Piece, read_piece, truth_from_shards
from pipeline.evaluation.table import format_quality, format_summary
from pipeline.evaluation.timing import Stopwatch
from pipeline.recipe import DataConfig, EvaluationConfig

_TRUE_BOXES = ("boxes_xyxy", "category_index", "is_crowd", "squeeze_field")

_METRICS: tuple[MetricName, ...] = ("segm", "boundary", "bbox")

_log = logging.getLogger(__name__)


class Found(NamedTuple):
    """What was found in a piece."""

    rows: list[Row]
    """Of a COCO results file."""
    image_ids: tuple[int, ...]
    seconds: tuple[float, ...]
    """Of the images that were timed."""


class Detector:
    """Finds the objects in pieces of a split, on the device where the model is."""

    def __init__(
        self, model: nn.Module, *, split_uri: str, data: DataConfig, evaluation: EvaluationConfig
    ) -> None:
        self._model, self._data, self._evaluation = model, data, evaluation
        self._split_uri, self._manifest = split_uri, read_manifest(split_uri)
        self._device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self._watch = Stopwatch(self._device)

    def __call__(self, piece: Piece) -> Found:
        """Find them.

        Raises:
            DatasetError: the model knows categories that the split does not have.
        """
        step, given = self._evaluation.images_per_batch, self._evaluation.boxes == "truth"
        table = read_piece(self._split_uri, piece, truth=_TRUE_BOXES if given else ())
        rows: list[Row] = []
        for start in range(0, len(table), step):
            part = table.slice(start, step)
            batch = collate_for_test(part, self._data, with_targets=given).to(self._device)
            for found in detect(
                self._model,
                batch,
                paste_bytes=self._evaluation.paste_bytes,
                in_true_boxes=given,
                watch=self._watch,
            ):
                rows += _rows(found, self._manifest, self._split_uri)
        return Found(rows, piece.image_ids, self._watch.taken())


def instance_work(
    split_uri: str, data: DataConfig, evaluation: EvaluationConfig, *, out_uri: str | None
) -> Work:
    """Say what is done with the pieces of a split of instances.

    Args:
        split_uri: folder of shards.
        data: how images are resized.
        evaluation: what is measured, and whether a submission is written.
        out_uri: folder for detections.json and submission/; None keeps nothing.
    """
    return Work(
        make=partial(Detector, split_uri=split_uri, data=data, evaluation=evaluation),
        measure=partial(_measured, split_uri=split_uri, evaluation=evaluation, out_uri=out_uri),
    )


def _measured(
    found: Sequence[Found], *, split_uri: str, evaluation: EvaluationConfig, out_uri: str | None
) -> Evaluation:
    """Measure what was found in all pieces, and write it where it shall be kept."""
    manifest = read_manifest(split_uri)
    image_ids = {image_id for part in found for image_id in part.image_ids}
    truth = truth_from_shards(split_uri, image_ids=image_ids)
    # Stable: an image lies in one piece, and keeps its order in it.
    rows = sorted((row for part in found for row in part.rows), key=lambda row: row["image_id"])
    files = {} if out_uri is None else _kept(rows, truth, out_uri, evaluation=evaluation)
    ratio = evaluation.dilation_ratio or (
        CITYSCAPES_DILATION_RATIO if manifest.is_cityscapes else COCO_DILATION_RATIO
    )
    if not truth["annotations"]:
        notice = "the images that were evaluated have no annotations: there is nothing to measure"
        return Evaluation(
            metrics=dict.fromkeys(flat_names(_METRICS), math.nan),
            text=notice,
            files=files,
            notices=(notice,),
            detections=rows,
        )
    by_metric: Mapping[MetricName, Metrics | LvisMetrics] = (
        evaluate_lvis_metrics(truth, rows, metrics=_METRICS, dilation_ratio=ratio)
        if manifest.federated
        else evaluate_metrics(truth, rows, metrics=_METRICS, dilation_ratio=ratio)
    )
    metrics = {name: value for each in by_metric.values() for name, value in each.flat().items()}
    text, quality = format_summary(by_metric), None
    if evaluation.boxes == "truth":
        quality = quality_in_true_boxes(truth, rows, dilation_ratio=ratio)
        metrics |= quality.means()
        text += "\n" + format_quality(quality)
    return Evaluation(
        metrics=metrics,
        text=text,
        per_category={
            name: {f"{each.prefix}_ap": each.per_category[name] for each in by_metric.values()}
            for name in next(iter(by_metric.values())).per_category
        },
        files=files,
        notices=tuple(dict.fromkeys(n for each in by_metric.values() for n in each.notices)),
        by_metric=dict(by_metric),
        detections=rows,
        quality=quality,
    )


def _rows(found: Sequence[Detection], manifest: Manifest, split_uri: str) -> list[Row]:
    known = {each.category_index: each.category_id for each in manifest.categories}
    foreign = {each.category_index for each in found} - known.keys()
    if foreign:
        raise DatasetError(
            f"the model found category_index {min(foreign)}, {split_uri} has {len(known)} "
            f"categories (0 to {len(known) - 1}): the model was made for another data set. "
            f"Evaluate it on its own, or train one with --model.num-classes {len(known)}"
        )
    return to_results(found, known)


def _kept(
    rows: Sequence[Row], truth: Mapping[str, Any], out_uri: str, *, evaluation: EvaluationConfig
) -> dict[str, str]:
    files = {"detections": storage.join(out_uri, "detections.json")}
    write_detections(files["detections"], rows)
    if evaluation.submission:
        files["submission"] = storage.join(out_uri, "submission")
        names = {image["id"]: image["file_name"] for image in truth["images"]}
        write_submission(files["submission"], rows, names)
        _log.info(
            "evaluate: AP by Cityscapes' own rules: python jobs/evaluate.py --metric "
            "cityscapes-instance --truth gtFine/SPLIT --detections %s",
            files["submission"],
        )
    return files
