"""From a model and a split to its numbers, and to what it found.

The split is cut into pieces that are the same for any number of workers (shards.py), and results
are put together in the order of the pieces. So one process, two workers and eight GPUs of a kind
give the same numbers.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from pipeline import storage
from pipeline.data.manifest import read_manifest
from pipeline.evaluation.chunks import IMAGES_EACH, in_order
from pipeline.evaluation.coco_files import write_detections
from pipeline.evaluation.instances import instance_work
from pipeline.evaluation.result import Evaluation, Work
from pipeline.evaluation.semantic import semantic_work
from pipeline.evaluation.split_reader import Piece, plan_pieces, truth_from_shards
from pipeline.evaluation.timing import format_inference, inference_metrics
from pipeline.recipe import DataConfig, EvaluationConfig

__all__ = ["Evaluation", "evaluate_model", "truth_from_shards", "write_detections"]


def evaluate_model(
    model: nn.Module,
    split_uri: str,
    data: DataConfig,
    evaluation: EvaluationConfig,
    *,
    out_uri: str | None = None,
    num_workers: int = 0,
    use_gpu: bool = False,
) -> Evaluation:
    """Run a model over a split and measure it.

    Args:
        model: of the kind of the split: in evaluation mode it gives
            `bsm.instance.tensors.Detections`, or the logits of every class.
        split_uri: folder of shards.
        data: how images are resized.
        evaluation: how many images, how they are batched, and what is measured.
        out_uri: folder or URI, reached by all workers, for what is found (Evaluation.files); None
            keeps nothing.
        num_workers: Ray workers that share the images; 0 works in this process, without Ray.
        use_gpu: on a GPU, one for each worker; else each worker takes a CPU, and this process the
            device where the model is.

    Raises:
        DatasetError: the split is not complete, or its categories are not the model's.
        StorageError: it cannot be read, or what is found cannot be written.
    """
    started = time.perf_counter()
    pieces, work = plan_work(split_uri, data, evaluation, out_uri=out_uri)
    parts = in_order(model, pieces, work.make, num_workers=num_workers, use_gpu=use_gpu)
    seconds = time.perf_counter() - started
    images = sum(len(piece.rows) for piece in pieces)
    timed = [each for part in parts for each in part.seconds]
    measured = work.measure(parts)
    speed = {"images": float(images), "seconds": seconds, "images_per_s": images / seconds}
    return replace(
        measured,
        metrics=measured.metrics | speed | inference_metrics(timed),
        text=f"{measured.text}\n{format_inference(timed)}",
    )


def plan_work(
    split_uri: str, data: DataConfig, evaluation: EvaluationConfig, *, out_uri: str | None = None
) -> tuple[Sequence[Piece], Work]:
    """Cut a split into pieces, and say what is done with each and with all of them.

    For arguments and errors see `evaluate_model`.
    """
    split_uri = storage.absolute(split_uri)
    passes = max(1, IMAGES_EACH // evaluation.images_per_batch)
    pieces = plan_pieces(
        split_uri,
        max_images=evaluation.max_images,
        images_each=passes * evaluation.images_per_batch,
    )
    semantic = read_manifest(split_uri).task == "semantic"
    work_of: Any = semantic_work if semantic else instance_work
    return pieces, work_of(split_uri, data, evaluation, out_uri=out_uri)
