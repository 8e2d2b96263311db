"""A model measured while it trains, by the workers that train it: each takes its share of images.

What comes of it is what `evaluate_model` would say of the same weights: the pieces are put together
in their own order, whoever did them.
"""

import json
import math
from typing import Any

import torch.distributed as dist
from torch import nn

from pipeline import storage
from pipeline.evaluation.evaluate import plan_work
from pipeline.recipe import Recipe
from pipeline.training.step import World

_FOLDER = "measured"


def measure(model: nn.Module, recipe: Recipe, *, world: World) -> dict[str, float]:
    """Measure a model on the recipe's validation split; every worker must call this.

    Args:
        model: not wrapped, on this worker's device; it comes back in the mode that it had.
        recipe: says on what, and what is measured.
        world: this worker's place.

    Returns:
        The metrics by name (mask_ap, boundary_ap, ..., or miou, ...), those that are no number left
        out; on workers other than the first nothing.
    """
    val_uri = storage.join(recipe.data.root, recipe.data.val_split)
    pieces, work = plan_work(val_uri, recipe.data, recipe.evaluation)
    was_training = model.training
    model.eval()
    try:
        do = work.make(model)
        mine = {index: do(pieces[index]) for index in range(world.rank, len(pieces), world.size)}
    finally:
        model.train(was_training)
    parts = _gathered(mine, world=world)
    if world.rank != 0:
        return {}
    metrics = work.measure([parts[index] for index in range(len(pieces))]).metrics
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def keep(run_uri: str, metrics: dict[str, float], *, step: int) -> None:
    """Put what was measured after so many steps beside the run's checkpoints, and leave it there.

    Raises:
        StorageError: the folder cannot be written.
    """
    uri = storage.join(run_uri, _FOLDER, f"step-{step:08d}.json")
    storage.write_bytes_atomic(uri, json.dumps(metrics, indent=1).encode())


def kept(run_uri: str) -> dict[int, dict[str, float]]:
    """Read what was measured at a run's checkpoints, by the steps done then.

    Raises:
        StorageError: the folder cannot be read.
    """
    files = storage.list_files(storage.join(run_uri, _FOLDER), suffix=".json")
    return {
        int(uri.rpartition("/step-")[2].removesuffix(".json")): json.loads(storage.read_bytes(uri))
        for uri in files
    }


def _gathered(mine: dict[int, Any], *, world: World) -> dict[int, Any]:
    if world.size == 1:
        return mine
    all_of_them: list[Any] | None = [None] * world.size if world.rank == 0 else None
    dist.gather_object(mine, all_of_them, dst=0)
    return {index: part for each in all_of_them or [] for index, part in each.items()}
