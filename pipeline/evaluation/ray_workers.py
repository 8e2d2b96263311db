"""Evaluate chunks on Ray workers: each holds the model and gets the next chunk when it is free.

The result of a chunk does not depend on the worker, so a lost worker's chunk is retried.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch import nn

from pipeline.evaluation.result import PredictorFactory
from pipeline.evaluation.split_reader import EvalChunk
from pipeline.progress import log_silence
from pipeline.ray_connection import explain_lost_processes

_RETRIES = 3

_CHUNKS_AHEAD = 2
"""Chunks queued per worker, so that no worker waits for the driver."""

_WARN_AFTER_S = 120
"""Warn if no chunk finishes for this long: Ray does not report workers that cannot start."""

# None means no group; without it, Ray would use the group of the calling process.
_NO_PLACEMENT_GROUP: Any = None

_MEMORY_ADVICE = (
    "use fewer images at once (--evaluation.images-per-batch 1), fewer workers "
    "(--scale.num-workers), or nodes with more memory"
)

_log = logging.getLogger(__name__)


class _Worker:
    """An actor that holds the model and predicts chunks."""

    def __init__(self, make_predictor: PredictorFactory, device: str) -> None:
        self._make_predictor = make_predictor
        self._device = device
        self._predict: Callable[[EvalChunk], Any] | None = None

    def predict(self, model_ref: list[Any], chunk: EvalChunk) -> Any:  # noqa: ANN401  a ChunkResult
        """Predict one chunk.

        Args:
            model_ref: reference to the model; in a list, or Ray would pass a copy of the model to
                each call. As an argument of the constructor, Ray would warn that a restarted worker
                may not find it.
            chunk: to predict.
        """
        if self._predict is None:
            self._predict = self._make_predictor(ray.get(model_ref[0]).to(self._device))
        return self._predict(chunk)


def run_on_ray(
    model: nn.Module,
    chunks: Sequence[EvalChunk],
    make_predictor: PredictorFactory,
    *,
    num_workers: int,
    use_gpu: bool,
) -> Iterator[tuple[EvalChunk, Any]]:
    """Run a predictor over chunks on Ray workers; see chunks.run_chunks.

    Yields:
        Each chunk and its result, in the order in which they finish.
    """
    remote = ray.remote(
        num_cpus=1,
        num_gpus=int(use_gpu),
        max_restarts=_RETRIES,
        max_task_retries=_RETRIES,
        # In a trial of a sweep, the trial's placement group has no room for the workers.
        scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=_NO_PLACEMENT_GROUP),
    )(_Worker)
    # On the CPU: a worker may have no GPU, or another one.
    model_ref = ray.put(copy.deepcopy(model).cpu())
    device = "cuda" if use_gpu else "cpu"
    workers: list[Any] = [
        remote.remote(make_predictor, device) for _ in range(min(num_workers, len(chunks)))
    ]
    try:
        with explain_lost_processes("evaluate", memory_advice=_MEMORY_ADVICE):
            yield from log_silence(_schedule(workers, chunks, model_ref=model_ref), "evaluate")
    finally:
        for worker in workers:
            ray.kill(worker)


def _schedule(
    workers: Sequence[Any],
    chunks: Sequence[EvalChunk],
    *,
    model_ref: Any,  # noqa: ANN401  a reference
) -> Iterator[tuple[EvalChunk, Any]]:
    waiting = iter(chunks)
    running: dict[Any, tuple[Any, EvalChunk]] = {}

    def submit_next(worker: Any) -> None:  # noqa: ANN401  an actor's handle
        chunk = next(waiting, None)
        if chunk is not None:
            running[worker.predict.remote([model_ref], chunk)] = worker, chunk

    for _ in range(_CHUNKS_AHEAD):
        for worker in workers:
            submit_next(worker)
    while running:
        done, _ = ray.wait(list(running), num_returns=1, timeout=_WARN_AFTER_S)
        if not done:
            _log.warning(
                "evaluate: no image finished for %ds. Check with `ray status` that there is a free "
                "CPU or GPU for each of the %d workers",
                _WARN_AFTER_S,
                len(workers),
            )
        for each in done:
            worker, chunk = running.pop(each)
            submit_next(worker)
            yield chunk, ray.get(each)
