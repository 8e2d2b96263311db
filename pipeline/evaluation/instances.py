"""Evaluate instance models: detections of each chunk, then mask, boundary and box AP of all.

A federated split (LVIS) is evaluated under LVIS's rules, all others under COCO's. Cityscapes also
uses COCO's rules, with the narrower band of boundary-iou-api: its official AP needs more of the
truth than shards hold, and is evaluated from files (cityscapes_submission.py).
"""

import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from torch import nn

from bsm.refine.refiner import Refiner
from pipeline import storage
from pipeline.data.annotation_rules import is_object
from pipeline.data.augment import decode_row
from pipeline.data.collate import collate_for_test
from pipeline.data.manifest import Manifest, read_manifest
from pipeline.data.photo import Pixels
from pipeline.errors import DatasetError
from pipeline.evaluation.ap_engine import MetricName
from pipeline.evaluation.bands import choose_ratio
from pipeline.evaluation.cityscapes_submission import write_submission
from pipeline.evaluation.coco_files import write_detections
from pipeline.evaluation.infer import Detection, detect, to_results
from pipeline.evaluation.mask_quality import measure_mask_quality
from pipeline.evaluation.mask_refinement import refine_segmentations
from pipeline.evaluation.merged_views import find_merged_objects
from pipeline.evaluation.metrics import coco_names, evaluate_metrics
from pipeline.evaluation.objects import Objects, encode_mask
from pipeline.evaluation.result import Evaluation, EvaluationTask, Row
from pipeline.evaluation.split_reader import EvalChunk, read_chunk, truth_from_shards
from pipeline.evaluation.table import format_quality, format_summary
from pipeline.evaluation.timing import Stopwatch
from pipeline.evaluation.views import find_objects
from pipeline.recipe import DataConfig, EvaluationConfig

TRUE_BOX_COLUMNS = ("boxes_xyxy", "category_index", "is_crowd", "squeeze_field")
"""Columns of a shard with the targets of an evaluation batch."""

_METRICS: tuple[MetricName, ...] = ("segm", "boundary", "bbox")

_log = logging.getLogger(__name__)


class ChunkDetections(NamedTuple):
    """Detections of a chunk."""

    rows: list[Row]
    """Rows of a COCO results file."""
    image_ids: tuple[int, ...]
    seconds: tuple[float, ...]
    """Inference time of each image that was timed."""


class InstancePredictor:
    """Detects the objects in chunks of a split, on the model's device."""

    def __init__(
        self,
        model: nn.Module,
        *,
        split_uri: str,
        data: DataConfig,
        evaluation: EvaluationConfig,
        refiner: Refiner | None = None,
    ) -> None:
        self._model, self._data, self._evaluation = model, data, evaluation
        self._split_uri, self._manifest = split_uri, read_manifest(split_uri)
        self._device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self._refiner = refiner and refiner.to(self._device)
        self._watch = Stopwatch(self._device)

    def __call__(self, chunk: EvalChunk) -> ChunkDetections:
        """Detect the objects of a chunk.

        Raises:
            DatasetError: the model predicts categories that the split does not have.
        """
        step, in_true_boxes = self._evaluation.images_per_batch, self._evaluation.boxes == "truth"
        table = read_chunk(self._split_uri, chunk, truth=TRUE_BOX_COLUMNS if in_true_boxes else ())
        detect_part = self._detect_views if self._evaluation.has_views else self._detect_batch
        rows: list[Row] = []
        for start in range(0, len(table), step):
            part = table.slice(start, step)
            for index, found in enumerate(detect_part(part)):
                image_rows = to_rows(found, self._manifest, self._split_uri)
                if self._refiner is not None:
                    self._refine_rows(self._refiner, decode_row(part, index), image_rows)
                rows += image_rows
        return ChunkDetections(rows, chunk.image_ids, self._watch.pop_seconds())

    def _detect_batch(self, part: pa.Table) -> list[list[Detection]]:
        in_true_boxes = self._evaluation.boxes == "truth"
        batch = collate_for_test(part, self._data, with_targets=in_true_boxes).to(self._device)
        return detect(
            self._model,
            batch,
            paste_bytes=self._evaluation.paste_bytes,
            in_true_boxes=in_true_boxes,
            watch=self._watch,
        )

    def _detect_views(self, part: pa.Table) -> list[list[Detection]]:
        """Merge the detections of several views, image by image."""
        image_ids = part["image_id"].to_pylist()
        return [
            self._merge_views(decode_row(part, row), each) for row, each in enumerate(image_ids)
        ]

    def _merge_views(self, pixels: Pixels, image_id: int) -> list[Detection]:
        def find(view: Pixels, scale: float) -> Objects:
            return find_objects(self._model, view, self._data, scale=scale)

        evaluation, size_hw = self._evaluation, (pixels.shape[0], pixels.shape[1])
        found = self._watch.time(
            lambda: find_merged_objects(
                find, pixels, scales=evaluation.scales, flip=evaluation.flip
            ),
            images=1,
        )
        return [
            Detection(
                image_id, index, score, (x0, y0, x1, y1), encode_mask(probs, box, size_hw), size_hw
            )
            for index, score, (x0, y0, x1, y1), box, probs in zip(
                found.category_index.tolist(),
                found.scores.tolist(),
                found.boxes_xyxy.tolist(),
                found.boxes_xyxy,
                found.mask_probs,
                strict=True,
            )
        ]

    def _refine_rows(self, refiner: Refiner, pixels: Pixels, rows: list[Row]) -> None:
        """Replace the masks of an image's rows by refined ones."""
        paste_bytes = self._evaluation.paste_bytes
        segmentations = [row["segmentation"] for row in rows]
        refined = refine_segmentations(refiner, pixels, segmentations, mask_bytes=paste_bytes)
        for row, mask in zip(rows, refined.segmentations, strict=True):
            row["segmentation"] = mask


def make_instance_task(
    split_uri: str,
    data: DataConfig,
    evaluation: EvaluationConfig,
    *,
    out_uri: str | None,
    refiner: Refiner | None = None,
) -> EvaluationTask:
    """Make the task of evaluating a split of instances.

    Args:
        split_uri: folder of shards.
        data: how to resize images.
        evaluation: metrics, and whether to write a submission.
        out_uri: folder for detections.json and submission/; None saves nothing.
        refiner: refines the masks that the model predicts; sent to the workers.
    """
    return EvaluationTask(
        make_predictor=partial(
            InstancePredictor,
            split_uri=split_uri,
            data=data,
            evaluation=evaluation,
            refiner=refiner,
        ),
        compute_metrics=partial(
            _compute_metrics, split_uri=split_uri, evaluation=evaluation, out_uri=out_uri
        ),
    )


def _compute_metrics(
    found: Sequence[ChunkDetections],
    *,
    split_uri: str,
    evaluation: EvaluationConfig,
    out_uri: str | None,
) -> Evaluation:
    """Compute the metrics of all chunks' detections, and save the detections."""
    manifest = read_manifest(split_uri)
    image_ids = {image_id for chunk in found for image_id in chunk.image_ids}
    truth = truth_from_shards(split_uri, image_ids=image_ids)
    # Stable: all detections of an image are in one chunk, and keep their order.
    rows = sorted((row for chunk in found for row in chunk.rows), key=lambda row: row["image_id"])
    files = (
        {} if out_uri is None else _save_predictions(rows, truth, out_uri, evaluation=evaluation)
    )
    ratio = choose_ratio(evaluation, manifest)
    if not any(is_object(each, federated=manifest.federated) for each in truth["annotations"]):
        notice = "the evaluated images have no annotations that count: AP is undefined"
        return Evaluation(
            metrics=dict.fromkeys(coco_names(_METRICS), math.nan),
            text=notice,
            files=files,
            notices=(notice,),
            detections=rows,
        )
    by_metric = evaluate_metrics(
        truth,
        rows,
        metrics=_METRICS,
        rules="lvis" if manifest.federated else "coco",
        dilation_ratio=ratio,
    )
    metrics = {name: value for each in by_metric.values() for name, value in each.flat().items()}
    text, quality = format_summary(by_metric), None
    if evaluation.boxes == "truth":
        quality = measure_mask_quality(truth, rows, dilation_ratio=ratio)
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
        by_metric=by_metric,
        detections=rows,
        quality=quality,
    )


def to_rows(found: Sequence[Detection], manifest: Manifest, split_uri: str) -> list[Row]:
    """Convert detections to rows of a COCO results file of a split.

    Raises:
        DatasetError: a category is not in the split.
    """
    known = {each.category_index: each.category_id for each in manifest.categories}
    unknown = {each.category_index for each in found} - known.keys()
    if unknown:
        raise DatasetError(
            f"the model predicted category_index {min(unknown)}, {split_uri} has {len(known)} "
            f"categories (0 to {len(known) - 1}): the model was trained on another dataset. "
            f"Evaluate it there, or train one with --model.num-classes {len(known)}"
        )
    return to_results(found, known)


def _save_predictions(
    rows: Sequence[Row], truth: Mapping[str, Any], out_uri: str, *, evaluation: EvaluationConfig
) -> dict[str, str]:
    files = {"detections": storage.join(out_uri, "detections.json")}
    write_detections(files["detections"], rows)
    if evaluation.submission:
        files["submission"] = storage.join(out_uri, "submission")
        names = {image["id"]: image["file_name"] for image in truth["images"]}
        write_submission(files["submission"], rows, names)
        _log.info(
            "evaluate: for the official Cityscapes AP, run: python jobs/evaluate.py --metric "
            "cityscapes-instance --truth gtFine/SPLIT --detections %s",
            files["submission"],
        )
    return files
