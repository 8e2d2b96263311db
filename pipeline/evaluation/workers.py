"""Detection shared by Ray workers: each holds the model and takes the next piece when it is free.

Which worker did a piece changes nothing, so a lost worker's piece is simply done again.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from torch import nn

from pipeline.evaluation.evaluate import detect_pieces
from pipeline.evaluation.shards import Piece
from pipeline.recipe import DataConfig, EvaluationConfig

_RETRIES = 3

_PIECES_AHEAD = 2
"""Pieces that wait at each worker, so that none waits for the driver."""


class _Detector:
    """A worker that holds the model."""

    def __init__(
        self,
        model: nn.Module,
        split_uri: str,
        data: DataConfig,
        evaluation: EvaluationConfig,
        device: str,
    ) -> None:
        self._model = model.to(device)
        self._split_uri = split_uri
        self._data = data
        self._evaluation = evaluation

    def detect(self, piece: Piece) -> list[dict[str, Any]]:
        """Give the rows of one piece."""
        (rows,) = detect_pieces(self._model, self._split_uri, [piece], self._data, self._evaluation)
        return rows


def detect_on_workers(
    model: nn.Module,
    split_uri: str,
    pieces: Sequence[Piece],
    data: DataConfig,
    evaluation: EvaluationConfig,
    *,
    num_workers: int,
    use_gpu: bool,
) -> Iterator[list[dict[str, Any]]]:
    """Run a model over pieces of a split on Ray workers.

    Yields:
        The rows of each piece, as they are done.
    """
    remote = ray.remote(
        num_cpus=1,
        num_gpus=int(use_gpu),
        max_restarts=_RETRIES,
        max_task_retries=_RETRIES,
    )(_Detector)
    # On the CPU: a worker may have no GPU, or another one.
    shared = ray.put(copy.deepcopy(model).cpu())
    device = "cuda" if use_gpu else "cpu"
    workers: list[Any] = [
        remote.remote(shared, split_uri, data, evaluation, device)
        for _ in range(min(num_workers, len(pieces)))
    ]
    try:
        yield from _in_turn(workers, pieces)
    finally:
        for worker in workers:
            ray.kill(worker)


def _in_turn(workers: Sequence[Any], pieces: Sequence[Piece]) -> Iterator[list[dict[str, Any]]]:
    waiting = iter(pieces)
    running: dict[Any, Any] = {}

    def hand_out(worker: Any) -> None:  # noqa: ANN401  an actor's handle
        piece = next(waiting, None)
        if piece is not None:
            running[worker.detect.remote(piece)] = worker

    for _ in range(_PIECES_AHEAD):
        for worker in workers:
            hand_out(worker)
    while running:
        (done,), _ = ray.wait(list(running), num_returns=1)
        hand_out(running.pop(done))
        rows: list[dict[str, Any]] = ray.get(done)
        yield rows
