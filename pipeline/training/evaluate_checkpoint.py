"""Evaluate a model while it trains: each training worker takes its share of the images.

The chunks are combined in their own order, whichever worker evaluated them, so the metrics are
those that `evaluate_model` gives for the same weights.
"""

import math

from torch import nn

from pipeline import storage
from pipeline.evaluation.evaluate import plan_evaluation
from pipeline.recipe import Recipe
from pipeline.training.step import WorkerContext
from pipeline.training.worker_parts import gather_parts


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
    parts = gather_parts(mine, worker=worker)
    if worker.rank != 0:
        return {}
    metrics = task.compute_metrics([parts[index] for index in range(len(chunks))]).metrics
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
