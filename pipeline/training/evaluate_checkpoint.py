"""Evaluate a model while it trains: each training worker takes its share of the images.

The chunks are combined in their own order, whichever worker evaluated them, so the metrics are
those that `evaluate_model` gives for the same weights.
"""

import json
import math
from typing import Any

import torch.distributed as dist
from torch import nn

from pipeline import checksums, storage
from pipeline.evaluation.evaluate import plan_evaluation
from pipeline.recipe import Recipe
from pipeline.training.step import WorkerContext

_FOLDER = "measured"


def evaluate_on_workers(
    model: nn.Module, recipe: Recipe, *, worker: WorkerContext
) -> dict[str, float]:
    """Evaluate a model on the recipe's validation split; every worker must call this.

    Args:
        model: not wrapped in DDP, on this worker's device; its training mode is restored.
        recipe: names the split and the evaluation settings.
        worker: the calling worker.

    Returns:
        On rank 0 the finite metrics by name (mask_ap, boundary_ap, ..., or miou, ...); on other
        workers an empty dict.
    """
    val_uri = storage.join(recipe.data.root, recipe.data.val_split)
    chunks, task = plan_evaluation(model, val_uri, recipe.data, recipe.evaluation)
    was_training = model.training
    model.eval()
    try:
        evaluate = task.make_predictor(model)
        mine = {
            index: evaluate(chunks[index])
            for index in range(worker.rank, len(chunks), worker.world_size)
        }
    finally:
        model.train(was_training)
    parts = _gather_parts(mine, worker=worker)
    if worker.rank != 0:
        return {}
    metrics = task.compute_metrics([parts[index] for index in range(len(chunks))]).metrics
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def save_metrics(run_uri: str, metrics: dict[str, float], *, step: int) -> None:
    """Save a checkpoint's metrics in the run's folder.

    Raises:
        StorageError: the folder cannot be written.
    """
    uri = storage.join(run_uri, _FOLDER, f"step-{step:08d}.json")
    checksums.write_file(uri, json.dumps(metrics, indent=1).encode())


def load_metrics(run_uri: str) -> dict[int, dict[str, float]]:
    """Load the metrics of a run's checkpoints, by step.

    Raises:
        StorageError: a file cannot be read, or was changed after it was written.
    """
    files = storage.list_files(storage.join(run_uri, _FOLDER), suffix=".json")
    return {
        int(uri.rpartition("/step-")[2].removesuffix(".json")): json.loads(checksums.read_file(uri))
        for uri in files
    }


def _gather_parts(mine: dict[int, Any], *, worker: WorkerContext) -> dict[int, Any]:
    if worker.world_size == 1:
        return mine
    gathered: list[Any] | None = [None] * worker.world_size if worker.rank == 0 else None
    dist.gather_object(mine, gathered, dst=0)
    return {index: part for parts in gathered or [] for index, part in parts.items()}
