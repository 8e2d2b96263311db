"""Evaluate semantic models: label maps of each chunk, then mean IoU and boundary F of all.

Each process compares its label maps with the truth and returns pixel counts only. These are
integers, so their sum does not depend on the workers. Each process writes its own label maps.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline import storage
from pipeline.data.augment import decode_row
from pipeline.data.collate_semantic import collate_for_test, decode_label
from pipeline.data.manifest import read_manifest
from pipeline.data.photo import Pixels
from pipeline.errors import DatasetError
from pipeline.evaluation.boundary_fscore import boundary_f, match_boundaries
from pipeline.evaluation.class_table import format_boundary_f, format_miou
from pipeline.evaluation.label_maps import label_batch
from pipeline.evaluation.label_planes import LabelMap, encode_labels
from pipeline.evaluation.mean_iou import count_pixels, mean_iou
from pipeline.evaluation.merged_views import find_mean_probs
from pipeline.evaluation.objects import Floats
from pipeline.evaluation.result import Evaluation, EvaluationTask
from pipeline.evaluation.split_reader import EvalChunk, read_chunk
from pipeline.evaluation.timing import Stopwatch
from pipeline.evaluation.views import find_probs
from pipeline.recipe import DataConfig, EvaluationConfig

LABEL_MAPS = "label_maps"
"""Folder of the predictions, beside a run's other results."""

Counts = NDArray[np.int64]


class ChunkCounts(NamedTuple):
    """Pixel counts of a chunk, predictions against truth."""

    pixels: Counts
    """(K, K + 1) from mean_iou.count_pixels."""
    outlines: tuple[Counts, ...]
    """(K, 1 + R, 2) of each image, from boundary_fscore.match_boundaries."""
    seconds: tuple[float, ...]
    """Inference time of each image that was timed."""


class SemanticPredictor:
    """Predicts label maps of chunks of a split, on the model's device, and counts pixels."""

    def __init__(
        self,
        model: nn.Module,
        *,
        split_uri: str,
        data: DataConfig,
        evaluation: EvaluationConfig,
        maps_uri: str | None,
    ) -> None:
        self._model, self._data, self._evaluation = model, data, evaluation
        self._split_uri, self._maps_uri = split_uri, maps_uri
        self._categories = read_manifest(split_uri).categories
        self._device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self._watch = Stopwatch(self._device)

    def __call__(self, chunk: EvalChunk) -> ChunkCounts:
        """Predict the label maps of a chunk, and compare them with the truth.

        Raises:
            DatasetError: the model predicts classes that the split does not have.
            StorageError: a label map cannot be written.
        """
        classes, step = len(self._categories), self._evaluation.images_per_batch
        table = read_chunk(self._split_uri, chunk, truth=["label"])
        pixels = np.zeros((classes, classes + 1), np.int64)
        outlines = []
        for row, labels in enumerate(self._predict_labels(table, step)):
            truth = decode_label(table, row)
            self._check_classes(labels)
            pixels += count_pixels(truth, labels, num_classes=classes)
            outlines.append(
                match_boundaries(
                    truth, labels, num_classes=classes, radii_px=self._evaluation.radii_px
                )
            )
            if self._maps_uri is not None:
                name = table["file_name"][row].as_py().rpartition(".")[0]
                uri = storage.join(self._maps_uri, f"{name}.png")
                storage.write_bytes_atomic(uri, encode_labels(labels, self._categories))
        return ChunkCounts(pixels, tuple(outlines), self._watch.pop_seconds())

    def _predict_labels(self, table: pa.Table, step: int) -> list[LabelMap]:
        if self._evaluation.has_views:
            return [self._merge_views(decode_row(table, row)) for row in range(len(table))]
        return [
            labels
            for start in range(0, len(table), step)
            for labels in label_batch(
                self._model,
                collate_for_test(table.slice(start, step), self._data).to(self._device),
                self._evaluation,
                watch=self._watch,
            )
        ]

    def _merge_views(self, pixels: Pixels) -> LabelMap:
        """Label an image by the mean of several views' probabilities."""

        def find(view: Pixels, scale: float) -> Floats:
            return find_probs(self._model, view, self._data, scale=scale)

        evaluation = self._evaluation
        probs = self._watch.time(
            lambda: find_mean_probs(find, pixels, scales=evaluation.scales, flip=evaluation.flip),
            images=1,
        )
        return np.asarray(probs.argmax(axis=0), dtype=np.uint8)

    def _check_classes(self, labels: LabelMap) -> None:
        known = len(self._categories)
        if labels.max() >= known:
            raise DatasetError(
                f"the model predicted class {labels.max()}, {self._split_uri} has {known} classes "
                f"(0 to {known - 1}): the model was trained on another dataset. Evaluate it there, "
                f"or train one with --model.num-classes {known}"
            )


def make_semantic_task(
    split_uri: str, data: DataConfig, evaluation: EvaluationConfig, *, out_uri: str | None
) -> EvaluationTask:
    """Make the task of evaluating a split of label maps.

    Args:
        split_uri: folder of shards.
        data: how to resize images.
        evaluation: radii, and the rule for images without a class.
        out_uri: folder for label_maps/, which is replaced; None saves nothing.

    Raises:
        StorageError: label maps of an earlier evaluation cannot be deleted.
    """
    maps_uri = None
    if out_uri is not None:
        maps_uri = storage.join(storage.absolute(out_uri), LABEL_MAPS)
        storage.remove(maps_uri)
    return EvaluationTask(
        make_predictor=partial(
            SemanticPredictor,
            split_uri=split_uri,
            data=data,
            evaluation=evaluation,
            maps_uri=maps_uri,
        ),
        compute_metrics=partial(
            _compute_metrics, split_uri=split_uri, evaluation=evaluation, maps_uri=maps_uri
        ),
    )


def _compute_metrics(
    counts: Sequence[ChunkCounts],
    *,
    split_uri: str,
    evaluation: EvaluationConfig,
    maps_uri: str | None,
) -> Evaluation:
    """Turn the counts of all chunks into mean IoU and boundary F."""
    names = [each.name for each in read_manifest(split_uri).categories]
    outlines = [image for chunk in counts for image in chunk.outlines]
    iou = mean_iou(
        np.sum([chunk.pixels for chunk in counts], axis=0), names=names, images=len(outlines)
    )
    boundary = boundary_f(
        outlines, names=names, radii_px=evaluation.radii_px, absent=evaluation.absent
    )
    keys = [f"boundary_f_{radius}px" for radius in boundary.radii_px]
    return Evaluation(
        metrics={"miou": iou.miou} | dict(zip(keys, boundary.f, strict=True)),
        text=f"{format_miou(iou)}\n\n{format_boundary_f(boundary)}",
        per_category={
            name: {"iou": iou.per_class[name]}
            | dict(zip(keys, boundary.per_class[name], strict=True))
            for name in names
        },
        files={} if maps_uri is None else {LABEL_MAPS: maps_uri},
        notices=(*iou.notices, *boundary.notices),
    )
