"""From a model and a split to its numbers: mask, boundary and box AP, and the detections behind.

The split is cut into pieces that are the same for any number of workers (shards.py), each piece
becomes rows of a COCO results file, and the rows are put in the order of image ids before they are
measured. So one process, two workers and eight GPUs of a kind give the same numbers.
"""

import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from pipeline.data.collate import collate_for_test
from pipeline.data.manifest import Manifest, read_manifest
from pipeline.errors import DatasetError
from pipeline.evaluation.coco_files import write_detections
from pipeline.evaluation.infer import Detection, detect, to_results
from pipeline.evaluation.mask_quality import MaskQuality, quality_in_true_boxes
from pipeline.evaluation.metrics import MetricName, Metrics, evaluate_metrics, flat_names
from pipeline.evaluation.shards import Piece, plan_pieces, read_piece, truth_from_shards
from pipeline.recipe import DataConfig, EvaluationConfig

__all__ = [
    "Evaluation",
    "detect_pieces",
    "evaluate_model",
    "truth_from_shards",
    "write_detections",
]

_METRICS: tuple[MetricName, ...] = ("segm", "boundary", "bbox")

_IMAGES_EACH = 8
"""Images of a piece of work; a progress line can come after each."""

_LOG_EVERY_S = 10.0

_log = logging.getLogger(__name__)

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What a model reaches on a split."""

    metrics: dict[str, float]
    """mask_ap, mask_ap50, ..., boundary_ap, ..., box_ap, ..., images, seconds, images_per_s, and
    with the boxes of the truth mask_iou, boundary_iou, ...; NaN where the split has no such
    objects."""
    per_category: dict[str, dict[str, float]] = field(default_factory=dict)
    """mask_ap, boundary_ap and box_ap by the category's name."""
    by_metric: dict[MetricName, Metrics] = field(default_factory=dict)
    """The same numbers with all that a table shows."""
    detections: list[Row]
    """Rows of a COCO results file, in the order of image ids, each image's best first."""
    notices: tuple[str, ...] = ()
    """What who reads the numbers should know."""
    quality: MaskQuality | None = None
    """Of each object, where the boxes are those of the truth."""


def evaluate_model(
    model: nn.Module,
    split_uri: str,
    data: DataConfig,
    evaluation: EvaluationConfig,
    *,
    num_workers: int = 0,
    use_gpu: bool = False,
) -> Evaluation:
    """Run a model over a split and measure it.

    Args:
        model: gives `bsm.instance.tensors.Detections` in evaluation mode.
        split_uri: folder of shards.
        data: how images are resized.
        evaluation: how many images, and how they are batched.
        num_workers: Ray workers that share the images; 0 works in this process, without Ray.
        use_gpu: on a GPU, one for each worker; else each worker takes a CPU, and this process the
            device where the model is.

    Raises:
        DatasetError: the split is not complete, or its categories are not the model's.
        StorageError: it cannot be read.
    """
    started = time.perf_counter()
    passes = max(1, _IMAGES_EACH // evaluation.images_per_pass)
    pieces = plan_pieces(
        split_uri,
        max_images=evaluation.max_images,
        images_each=passes * evaluation.images_per_pass,
    )
    found: Iterator[tuple[Piece, list[Row]]]
    if num_workers == 0:
        placed = model.to("cuda") if use_gpu else model
        found = detect_pieces(placed, split_uri, pieces, data, evaluation)
    else:
        from pipeline.evaluation.workers import detect_on_workers  # noqa: PLC0415  imports ray

        found = detect_on_workers(
            model, split_uri, pieces, data, evaluation, num_workers=num_workers, use_gpu=use_gpu
        )
    image_ids = [image_id for piece in pieces for image_id in piece.image_ids]
    rows = _gathered(found, total=len(image_ids), started=started)
    seconds = time.perf_counter() - started
    truth = truth_from_shards(split_uri, image_ids=set(image_ids))
    speed = {
        "images": float(len(image_ids)),
        "seconds": seconds,
        "images_per_s": len(image_ids) / seconds,
    }
    measured = _measured(truth, rows, speed=speed)
    if evaluation.boxes == "predicted":
        return measured
    quality = quality_in_true_boxes(truth, rows)
    return replace(measured, quality=quality, metrics=measured.metrics | quality.means())


def detect_pieces(
    model: nn.Module,
    split_uri: str,
    pieces: Sequence[Piece],
    data: DataConfig,
    evaluation: EvaluationConfig,
) -> Iterator[tuple[Piece, list[Row]]]:
    """Run a model over pieces of a split, on the device where the model is.

    Yields:
        Each piece and its detections, as rows of a COCO results file.

    Raises:
        DatasetError: the model knows categories that the split does not have.
    """
    manifest = read_manifest(split_uri)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    step, given = evaluation.images_per_pass, evaluation.boxes == "truth"
    for piece in pieces:
        table = read_piece(split_uri, piece, with_targets=given)
        rows: list[Row] = []
        for start in range(0, len(table), step):
            part = table.slice(start, step)
            batch = collate_for_test(part, data, with_targets=given).to(device)
            for found in detect(
                model, batch, paste_bytes=evaluation.paste_bytes, in_true_boxes=given
            ):
                rows += _rows(found, manifest, split_uri)
        yield piece, rows


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


def _gathered(found: Iterable[tuple[Piece, list[Row]]], *, total: int, started: float) -> list[Row]:
    """Collect rows in the order of image ids, with a progress line now and then."""
    rows: list[Row] = []
    done, told = 0, started
    for piece, part in found:
        rows += part
        done += len(piece.rows)
        now = time.perf_counter()
        if now - told >= _LOG_EVERY_S or done == total:
            told = now
            speed = done / (now - started)
            eta_s = round((total - done) / speed)
            _log.info("evaluate %d/%d images  %.1f img/s  eta %ds", done, total, speed, eta_s)
    # Stable: an image lies in one piece, and keeps its order in it.
    return sorted(rows, key=lambda row: row["image_id"])


def _measured(truth: dict[str, Any], rows: list[Row], *, speed: dict[str, float]) -> Evaluation:
    if not truth["annotations"]:
        nothing = dict.fromkeys(flat_names(_METRICS), math.nan)
        notice = "the images that were evaluated have no annotations: there is nothing to measure"
        _log.warning(notice)
        return Evaluation(metrics=nothing | speed, detections=rows, notices=(notice,))
    by_metric = evaluate_metrics(truth, rows, metrics=_METRICS)
    names = next(iter(by_metric.values())).per_category
    return Evaluation(
        metrics={k: v for each in by_metric.values() for k, v in each.flat().items()} | speed,
        per_category={
            name: {f"{each.prefix}_ap": each.per_category[name] for each in by_metric.values()}
            for name in names
        },
        by_metric=by_metric,
        detections=rows,
        notices=tuple(dict.fromkeys(n for each in by_metric.values() for n in each.notices)),
    )
