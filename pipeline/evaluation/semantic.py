"""Evaluation of semantic models: label maps of each piece, then mean IoU and boundary F of all.

Each process compares its label maps with the truth at once and passes on pixel counts alone: they
are whole numbers, so their sum is the same whoever counted what. The maps themselves are written
where they are made.
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
from pipeline.data.collate_semantic import collate_for_test, decoded_label
from pipeline.data.manifest import read_manifest
from pipeline.errors import DatasetError
from pipeline.evaluation.boundary_fscore import boundary_f, match_boundaries
from pipeline.evaluation.class_table import format_boundary_f, format_miou
from pipeline.evaluation.label_maps import LabelMap, encode_labels, label_batch
from pipeline.evaluation.mean_iou import count_pixels, mean_iou
from pipeline.evaluation.result import Evaluation, Work
from pipeline.evaluation.split_reader import Piece, read_piece
from pipeline.evaluation.timing import Stopwatch
from pipeline.recipe import DataConfig, EvaluationConfig

LABEL_MAPS = "label_maps"
"""Folder of what was predicted, beside a run's other results."""

Counts = NDArray[np.int64]


class Compared(NamedTuple):
    """How the label maps of a piece lie on the truth, in pixels."""

    pixels: Counts
    """(K, K + 1) see mean_iou.count_pixels."""
    outlines: tuple[Counts, ...]
    """For each image (K, 1 + R, 2), see boundary_fscore.match_boundaries."""
    seconds: tuple[float, ...]
    """Of the images that were timed."""


class Labeler:
    """Labels the images of pieces of a split, on the device where the model is, and compares."""

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

    def __call__(self, piece: Piece) -> Compared:
        """Label and compare.

        Raises:
            DatasetError: the model knows classes that the split does not have.
            StorageError: a map cannot be written.
        """
        classes, step = len(self._categories), self._evaluation.images_per_batch
        table = read_piece(self._split_uri, piece, truth=["label"])
        pixels = np.zeros((classes, classes + 1), np.int64)
        outlines = []
        for row, labels in enumerate(self._labels(table, step)):
            truth = decoded_label(table, row)
            self._check(labels)
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
        return Compared(pixels, tuple(outlines), self._watch.taken())

    def _labels(self, table: pa.Table, step: int) -> list[LabelMap]:
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

    def _check(self, labels: LabelMap) -> None:
        known = len(self._categories)
        if labels.max() >= known:
            raise DatasetError(
                f"the model found class {labels.max()}, {self._split_uri} has {known} classes (0 "
                f"to {known - 1}): the model was made for another data set. Evaluate it on its "
                f"own, or train one with --model.num-classes {known}"
            )


def semantic_work(
    split_uri: str, data: DataConfig, evaluation: EvaluationConfig, *, out_uri: str | None
) -> Work:
    """Say what is done with the pieces of a split of label maps.

    Args:
        split_uri: folder of shards.
        data: how images are resized.
        evaluation: the radii, and what an image without a class counts.
        out_uri: folder for label_maps/, which is made anew; None keeps nothing.

    Raises:
        StorageError: maps of an earlier evaluation cannot be deleted.
    """
    maps_uri = None
    if out_uri is not None:
        maps_uri = storage.join(storage.absolute(out_uri), LABEL_MAPS)
        storage.remove(maps_uri)
    return Work(
        make=partial(
            Labeler, split_uri=split_uri, data=data, evaluation=evaluation, maps_uri=maps_uri
        ),
        measure=partial(_measured, split_uri=split_uri, evaluation=evaluation, maps_uri=maps_uri),
    )


def _measured(
    compared: Sequence[Compared],
    *,
    split_uri: str,
    evaluation: EvaluationConfig,
    maps_uri: str | None,
) -> Evaluation:
    """Turn the counts of all pieces into mean IoU and boundary F."""
    names = [each.name for each in read_manifest(split_uri).categories]
    outlines = [image for part in compared for image in part.outlines]
    iou = mean_iou(
        np.sum([part.pixels for part in compared], axis=0), names=names, images=len(outlines)
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
