"""Compute the losses of training on the validation split, to see where a model overfits.

Images have the size of evaluation and no augmentation. Norms use their running statistics and
nothing is dropped, but all else is as in training: targets, sampling and weights of the losses.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from pipeline import storage
from pipeline.data import collate_semantic
from pipeline.data.batch import PAD_TO_MULTIPLE_PX, Batch
from pipeline.data.collate import collate
from pipeline.data.manifest import read_manifest
from pipeline.data.read_rows import read_rows, train_columns
from pipeline.evaluation.chunks import IMAGES_PER_CHUNK
from pipeline.evaluation.split_reader import EvalChunk, plan_chunks
from pipeline.recipe import DataConfig, Recipe, reads_masks
from pipeline.training.step import WorkerContext
from pipeline.training.worker_parts import gather_parts

PREFIX = "val_"
"""Of the names of these losses; their sum is val_loss."""

_RANDOM_OR_AVERAGING = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)  # noqa: SLF001


class ChunkLosses(NamedTuple):
    """The losses of a chunk, summed over its images."""

    images: int
    sums: dict[str, float]


def compute_validation_losses(
    model: nn.Module, recipe: Recipe, *, worker: WorkerContext
) -> dict[str, float]:
    """Average the losses over the evaluated images; every worker must call this.

    Args:
        model: not wrapped in DDP, on this worker's device; its training mode is restored.
        recipe: names the split, the size of images and the evaluated images.
        worker: the calling worker.

    Returns:
        On rank 0 val_loss, their sum, and val_loss_mask, val_loss_box, ...; on other workers an
        empty dict.
    """
    split_uri = storage.join(recipe.data.root, recipe.data.val_split)
    step = recipe.evaluation.images_per_batch
    chunks = plan_chunks(
        split_uri,
        max_images=recipe.evaluation.max_images,
        images_per_chunk=max(1, IMAGES_PER_CHUNK // step) * step,
    )
    # The random state of training goes on as if this were not here.
    devices = [worker.device] if worker.device.type == "cuda" else []
    with _losses_mode(model), torch.random.fork_rng(devices), torch.no_grad():
        mine = {
            index: _sum_losses(model, chunks[index], split_uri, recipe, worker=worker)
            for index in range(worker.rank, len(chunks), worker.world_size)
        }
    parts = gather_parts(mine, worker=worker)
    if worker.rank != 0 or not chunks:
        return {}
    return _average([parts[index] for index in range(len(chunks))])


def _sum_losses(
    model: nn.Module, chunk: EvalChunk, split_uri: str, recipe: Recipe, *, worker: WorkerContext
) -> ChunkLosses:
    sums: dict[str, Tensor] = {}
    torch.manual_seed(recipe.seed)
    use_amp = recipe.optim.amp and worker.device.type == "cuda"
    for batch in _read_batches(split_uri, chunk, recipe):
        on_device = batch.to(worker.device)
        with torch.autocast(worker.device.type, torch.bfloat16, enabled=use_amp):
            losses: Mapping[str, Tensor] = model(
                on_device.images, on_device.image_sizes_hw, on_device.targets
            )
        for name, loss in losses.items():
            sums[name] = sums.get(name, torch.zeros_like(loss)) + loss.double() * len(batch.images)
    values = torch.stack(list(sums.values())).tolist()
    return ChunkLosses(len(chunk.rows), dict(zip(sums, values, strict=True)))


def _average(parts: list[ChunkLosses]) -> dict[str, float]:
    images = sum(part.images for part in parts)
    losses = {
        PREFIX + name: sum(part.sums[name] for part in parts) / images for name in parts[0].sums
    }
    return {f"{PREFIX}loss": sum(losses.values()), **losses}


def _read_batches(split_uri: str, chunk: EvalChunk, recipe: Recipe) -> Iterator[Batch]:
    task, with_masks = read_manifest(split_uri).task, reads_masks(recipe.model)
    rows = read_rows(
        storage.join(split_uri, chunk.file),
        chunk.row_group,
        np.array(chunk.rows),
        columns=train_columns(task, with_masks=with_masks),
    )
    # Columns of the training plan: each image is the first sample of its own.
    for name in ("epoch", "lane"):
        rows = rows.append_column(name, pa.array(np.zeros(len(rows), dtype=np.int64)))
    for start in range(0, len(rows), recipe.evaluation.images_per_batch):
        part = rows.slice(start, recipe.evaluation.images_per_batch)
        data = _without_augmentation(recipe, part)
        if task == "semantic":
            yield collate_semantic.collate(part, data, seed=recipe.seed)
        else:
            yield collate(part, data, seed=recipe.seed, with_masks=with_masks)


def _without_augmentation(recipe: Recipe, rows: pa.Table) -> DataConfig:
    """Make the training transforms those of evaluation; crops hold whole images."""
    data = recipe.data
    # The refiner is evaluated on crops, and has no edge of evaluation.
    edges = sorted(data.short_edge_px)
    edge_px = edges[len(edges) // 2] if recipe.model.task == "refine" else data.test_short_edge_px
    longest = max(*rows["height"].to_pylist(), *rows["width"].to_pylist())
    return DataConfig(
        short_edge_px=(edge_px,),
        test_short_edge_px=edge_px,
        long_edge_px=data.long_edge_px,
        scale_range=(1.0, 1.0),
        crop_px=-(-longest // PAD_TO_MULTIPLE_PX) * PAD_TO_MULTIPLE_PX,
        flip_probability=0.0,
    )


@contextmanager
def _losses_mode(model: nn.Module) -> Iterator[None]:
    """Let a model compute losses, with norms and dropout as in evaluation."""
    was_training = model.training
    model.train()
    for module in model.modules():
        if isinstance(module, _RANDOM_OR_AVERAGING) or type(module).__name__ == "DropPath":
            module.eval()
    try:
        yield
    finally:
        model.train(was_training)
