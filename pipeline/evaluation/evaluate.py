"""Evaluate a model on a split.

The split is cut into the same chunks for any number of workers (split_reader.py), and results are
combined in the order of the chunks. So one process, two workers and eight GPUs of one kind give the
same metrics.
"""

import time
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from bsm.refine.refiner import Refiner
from pipeline import storage
from pipeline.data.manifest import read_manifest
from pipeline.evaluation.chunks import IMAGES_PER_CHUNK, run_chunks
from pipeline.evaluation.coco_files import write_detections
from pipeline.evaluation.instances import make_instance_task
from pipeline.evaluation.refined import make_refinement_task
from pipeline.evaluation.result import Evaluation, EvaluationTask
from pipeline.evaluation.semantic import make_semantic_task
from pipeline.evaluation.split_reader import EvalChunk, plan_chunks, truth_from_shards
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
    refiner: Refiner | None = None,
) -> Evaluation:
    """Run a model over a split and compute its metrics.

    Args:
        model: for the task of the split; in evaluation mode it returns
            `bsm.instance.tensors.Detections`, or logits of all classes. Or a refiner, which gets
            the damaged truth of a split of instances.
        split_uri: folder of shards.
        data: how to resize images.
        evaluation: number of images, batch size, and metrics.
        out_uri: folder or URI for the predictions (Evaluation.files), reachable from all workers;
            None does not save them.
        num_workers: number of Ray workers; 0 runs in this process, without Ray.
        use_gpu: use one GPU per worker, or move the model to this process's GPU. Otherwise a worker
            uses one CPU, and this process the device of the model.
        refiner: refines the masks that an instance model predicts, before they are scored.

    Raises:
        DatasetError: the split is incomplete, or its categories are not the model's.
        StorageError: the split cannot be read, or the predictions cannot be written.
    """
    started = time.perf_counter()
    chunks, task = plan_evaluation(
        model, split_uri, data, evaluation, out_uri=out_uri, refiner=refiner
    )
    results = run_chunks(
        model, chunks, task.make_predictor, num_workers=num_workers, use_gpu=use_gpu
    )
    seconds = time.perf_counter() - started
    images = sum(len(chunk.rows) for chunk in chunks)
    image_seconds = [each for result in results for each in result.seconds]
    measured = task.compute_metrics(results)
    speed = {"images": float(images), "seconds": seconds, "images_per_s": images / seconds}
    return replace(
        measured,
        metrics=measured.metrics | speed | inference_metrics(image_seconds),
        text=f"{measured.text}\n{format_inference(image_seconds)}",
    )


def plan_evaluation(
    model: nn.Module,
    split_uri: str,
    data: DataConfig,
    evaluation: EvaluationConfig,
    *,
    out_uri: str | None = None,
    refiner: Refiner | None = None,
) -> tuple[Sequence[EvalChunk], EvaluationTask]:
    """Cut a split into chunks, and make the task for the model and the kind of labels.

    For arguments and errors see `evaluate_model`.
    """
    split_uri = storage.absolute(split_uri)
    batches = max(1, IMAGES_PER_CHUNK // evaluation.images_per_batch)
    chunks = plan_chunks(
        split_uri,
        max_images=evaluation.max_images,
        images_per_chunk=batches * evaluation.images_per_batch,
    )
    if isinstance(model, Refiner):
        return chunks, make_refinement_task(split_uri, evaluation, out_uri=out_uri)
    if read_manifest(split_uri).task == "semantic":
        return chunks, make_semantic_task(split_uri, data, evaluation, out_uri=out_uri)
    return chunks, make_instance_task(split_uri, data, evaluation, out_uri=out_uri, refiner=refiner)
