"""Train by a bare loop under torchrun: the model and step of a recipe, on shards read in order.

    torchrun --standalone --nproc_per_node 2 -m pipeline.bench.bare_training RECIPE.json

Each rank reads its share of the files. Prints the progress lines that a run prints.
"""

import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from bsm.build import build_model
from pipeline.bench.bare_feed import bare_batches
from pipeline.recipe import Recipe, from_json
from pipeline.training.loop import wrap_for_training
from pipeline.training.optim import build_optimizer
from pipeline.training.step import WorkerContext, train_step


def train_bare(recipe: Recipe) -> None:
    """Train all steps; rank 0 prints the first step, and the images per second of the others."""
    worker = WorkerContext(rank=dist.get_rank(), world_size=dist.get_world_size())
    torch.set_num_threads(max(1, recipe.scale.threads_per_worker))
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model).train()
    optimizer = build_optimizer(model, optim=recipe.optim)
    wrapped = wrap_for_training(model, worker=worker)
    share = recipe.optim.global_batch // worker.world_size
    at_once = recipe.scale.microbatch
    batches = bare_batches(
        Path(recipe.data.root) / recipe.data.train_split,
        batch=at_once,
        short_edge_px=recipe.data.short_edge_px[0],
        long_edge_px=recipe.data.long_edge_px,
        rank=worker.rank,
        world_size=worker.world_size,
    )
    began = 0.0
    for step in range(recipe.optim.steps):
        train_step(
            wrapped,
            optimizer,
            microbatches=[next(batches) for _ in range(share // at_once)],
            step=step,
            optim=recipe.optim,
            device=worker.device,
        )
        if step == 0:
            began = time.perf_counter()
            _print(worker, f"step 1/{recipe.optim.steps}")
    seconds = time.perf_counter() - began
    images = (recipe.optim.steps - 1) * recipe.optim.global_batch
    _print(worker, f"step {recipe.optim.steps}/{recipe.optim.steps}")
    _print(worker, f'RESULT {{"images_per_s": {images / seconds:.3f}}}')


def _print(worker: WorkerContext, line: str) -> None:
    if worker.rank == 0:
        print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    dist.init_process_group("gloo")
    train_bare(from_json(Path(sys.argv[1]).read_bytes()))
    dist.destroy_process_group()
