"""Evaluate refiners: the true masks of a split are damaged, refined and compared with the truth."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa

from bsm.refine.refiner import Refiner
from pipeline import storage
from pipeline.data.augment import decode_row
from pipeline.data.manifest import read_manifest
from pipeline.data.photo import Pixels
from pipeline.evaluation.bands import choose_ratio
from pipeline.evaluation.coco_files import write_detections
from pipeline.evaluation.damaged_truth import damage_truth
from pipeline.evaluation.mask_refinement import RefinedMask, refine_rles, to_segmentation
from pipeline.evaluation.refinement_scores import (
    RefinementScores,
    format_scores,
    join_scores,
    score_refinement,
)
from pipeline.evaluation.result import Evaluation, EvaluationTask, Row
from pipeline.evaluation.rle import Rle
from pipeline.evaluation.split_reader import EvalChunk, read_chunk
from pipeline.evaluation.timing import Stopwatch
from pipeline.recipe import EvaluationConfig

_COLUMNS = ("height", "width", "annotation_id", "category_index", "is_crowd", "rle")

_NO_LIMIT = 1.0
"""The evaluation measures every change that the refiner makes."""


class ChunkRefinement(NamedTuple):
    """Refined masks of a chunk."""

    rows: list[Row]
    """Rows of a COCO results file, with annotation_id."""
    scores: RefinementScores
    seconds: tuple[float, ...]
    """Time of each image that was timed."""


class RefinementPredictor:
    """Damages and refines the true masks in chunks of a split, on the model's device."""

    def __init__(self, model: Refiner, *, split_uri: str, evaluation: EvaluationConfig) -> None:
        self._model, self._evaluation = model, evaluation
        self._split_uri, manifest = split_uri, read_manifest(split_uri)
        self._category_ids = {e.category_index: e.category_id for e in manifest.categories}
        self._ratio = choose_ratio(evaluation, manifest)
        self._watch = Stopwatch(next(model.parameters()).device)

    def __call__(self, chunk: EvalChunk) -> ChunkRefinement:
        """Damage, refine and score the masks of a chunk; crowds are left out."""
        table = read_chunk(self._split_uri, chunk, truth=_COLUMNS[2:])
        rows: list[Row] = []
        scores: list[RefinementScores] = []
        for index in range(len(table)):
            for row, score in self._refine_image(table, index):
                rows.append(row)
                scores.append(score)
        return ChunkRefinement(rows, join_scores(scores), self._watch.pop_seconds())

    def _refine_image(self, table: pa.Table, index: int) -> list[tuple[Row, RefinementScores]]:
        image_id = table["image_id"][index].as_py()
        size_hw = [table[name][index].as_py() for name in ("height", "width")]
        objects = [
            (annotation_id, self._category_ids[category], {"size": size_hw, "counts": counts})
            for annotation_id, category, is_crowd, counts in zip(
                *(table[name][index].as_py() for name in _COLUMNS[2:]), strict=True
            )
            if not is_crowd
        ]
        if not objects:
            return []
        truth = [rle for *_, rle in objects]
        ids = [annotation_id for annotation_id, *_ in objects]
        given = damage_truth(truth, image_id=image_id, annotation_ids=ids)
        pixels = decode_row(table, index)
        refined = self._watch.time(lambda: self._refine(pixels, given), images=1)
        return [
            (
                {
                    "image_id": image_id,
                    "category_id": category_id,
                    "annotation_id": annotation_id,
                    "score": mask.confidence,
                    "segmentation": to_segmentation(mask.rle),
                },
                score_refinement(rle, before, mask.rle, ratio=self._ratio),
            )
            for (annotation_id, category_id, rle), before, mask in zip(
                objects, given, refined, strict=True
            )
        ]

    def _refine(self, pixels: Pixels, given: Sequence[Rle]) -> list[RefinedMask]:
        return refine_rles(
            self._model,
            pixels,
            given,
            max_change=_NO_LIMIT,
            mask_bytes=self._evaluation.paste_bytes,
        )


def make_refinement_task(
    split_uri: str, evaluation: EvaluationConfig, *, out_uri: str | None
) -> EvaluationTask:
    """Make the task of evaluating a refiner on a split of instances.

    Args:
        split_uri: folder of shards.
        evaluation: width of the wide band, and memory limit.
        out_uri: folder for refined.json; None saves nothing.
    """
    predictor: Any = partial(RefinementPredictor, split_uri=split_uri, evaluation=evaluation)
    return EvaluationTask(
        make_predictor=predictor,
        compute_metrics=partial(
            _compute_metrics,
            ratio=choose_ratio(evaluation, read_manifest(split_uri)),
            out_uri=out_uri,
        ),
    )


def _compute_metrics(
    found: Sequence[ChunkRefinement], *, ratio: float, out_uri: str | None
) -> Evaluation:
    # Stable: all masks of an image are in one chunk, and keep their order.
    rows = sorted((row for chunk in found for row in chunk.rows), key=lambda row: row["image_id"])
    files: Mapping[str, str] = {}
    if out_uri is not None:
        files = {"refined": storage.join(out_uri, "refined.json")}
        write_detections(files["refined"], rows)
    scores = join_scores([chunk.scores for chunk in found])
    notices = () if rows else ("the evaluated images have no masks to refine: IoU is undefined",)
    return Evaluation(
        metrics=scores.means(),
        text="\n".join([*format_scores(scores, ratio=ratio), *notices]),
        files=dict(files),
        notices=notices,
        detections=rows,
    )
