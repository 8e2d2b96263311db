"""Refine photos on Ray: Ray Data streams them through actors that hold the model."""

import copy
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from torch import nn

from pipeline.progress import log_silence
from pipeline.ray_connection import connect
from pipeline.refine.photo_masks import MakeRefiner, PhotoMasks, PhotoResult

_PHOTOS_PER_BLOCK = 8

_INDEX, _PHOTO, _RESULT = "index", "photo", "result"


class _Actor:
    """A process of Ray Data that holds the model."""

    def __init__(self, model_ref: list[Any], make_refiner: MakeRefiner, device: str) -> None:
        self._refine = make_refiner(ray.get(model_ref[0]).to(device))

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {_INDEX: row[_INDEX], _RESULT: self._refine(row[_PHOTO])}


def refine_on_ray(
    model: nn.Module,
    photos: Sequence[PhotoMasks],
    make_refiner: MakeRefiner,
    *,
    workers: int,
    use_gpu: bool,
) -> Iterator[tuple[int, PhotoResult]]:
    """Refine photos, and yield the index and the result of each as they finish.

    Args:
        model: copied to the workers.
        photos: with their masks.
        make_refiner: makes the function that refines a photo; called once on each worker.
        workers: number of workers; -1 for one per CPU, or per GPU.
        use_gpu: use one GPU per worker.

    Raises:
        SetupError: Ray cannot be used.
    """
    connect(cpus=max(workers, 1) + 1)
    if workers < 0:
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        workers = max(1, int(resources.get("GPU" if use_gpu else "CPU", 1)))
    context = ray.data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    blocks = max(1, -(-len(photos) // _PHOTOS_PER_BLOCK))
    rows = [{_INDEX: index, _PHOTO: photo} for index, photo in enumerate(photos)]
    actor: Any = _Actor  # Ray's types know functions only
    results = ray.data.from_items(rows, override_num_blocks=blocks).map(
        actor,
        fn_constructor_args=(
            # In a list, or Ray would pass the model itself to each actor's constructor.
            [ray.put(copy.deepcopy(model).cpu())],
            make_refiner,
            "cuda" if use_gpu else "cpu",
        ),
        concurrency=min(workers, blocks),
        num_cpus=1,
        num_gpus=int(use_gpu),
    )
    try:
        for row in log_silence(results.iter_rows(), "refine"):
            yield row[_INDEX], row[_RESULT]
    finally:
        context.enable_progress_bars = bars
