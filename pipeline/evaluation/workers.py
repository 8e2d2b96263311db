"""Detection shared by Ray workers: each holds the model and takes the next piece when it is free.

Which worker did a piece changes nothing, so a lost worker's piece is simply done again.
"""

import copy
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from torch import nn

from pipeline.evaluation.evaluate import Row, detect_pieces
from pipeline.evaluation.shards import Piece
from pipeline.recipe import DataConfig, EvaluationConfig

_RETRIES = 3

_PIECES_AHEAD = 2
"""Pieces that wait at each worker, so that none waits for the driver."""

_PATIENCE_S = 120
"""A warning comes when nothing was done for so long: workers that cannot start wait in silence."""

_log = logging.getLogger(__name__)


class _Detector:
    """A worker that holds the model."""

    def __init__(
        self, split_uri: str, data: DataConfig, evaluation: EvaluationConfig, device: str
    ) -> None:
        self._model: nn.Module | None = None
        self._split_uri = split_uri
        self._data = data
        self._evaluation = evaluation
        self._device = device

    def detect(self, shared: list[Any], piece: Piece) -> list[Row]:
        """Give the rows of one piece.

        Args:
            shared: the reference to the model, in a list so that Ray hands over the reference and
                not a copy each time. A restarted worker fetches the model again; given to the
                constructor, Ray would warn that a restart may not find it.
            piece: what to look at.
        """
        if self._model is None:
            self._model = ray.get(shared[0]).to(self._device)
        ((_, rows),) = detect_pieces(
            self._model, self._split_uri, [piece], self._data, self._evaluation
        )
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
) -> Iterator[tuple[Piece, list[Row]]]:
    """Run a model over pieces of a split on Ray workers.

    Yields:
        Each piece and its rows, as they are done.
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
        remote.remote(split_uri, data, evaluation, device)
        for _ in range(min(num_workers, len(pieces)))
    ]
    try:
        yield from _in_turn(workers, pieces, shared=shared)
    finally:
        for worker in workers:
            ray.kill(worker)


def _in_turn(
    workers: Sequence[Any],
    pieces: Sequence[Piece],
    *,
    shared: Any,  # noqa: ANN401  a reference
) -> Iterator[tuple[Piece, list[Row]]]:
    waiting = iter(pieces)
    running: dict[Any, tuple[Any, Piece]] = {}

    def hand_out(worker: Any) -> None:  # noqa: ANN401  an actor's handle
        piece = next(waiting, None)
        if piece is not None:
            running[worker.detect.remote([shared], piece)] = worker, piece

    for _ in range(_PIECES_AHEAD):
        for worker in workers:
            hand_out(worker)
    while running:
        done, _ = ray.wait(list(running), num_returns=1, timeout=_PATIENCE_S)
        if not done:
            _log.warning(
                "evaluate: no image done for %ds; see `ray status`: is there a free CPU or GPU for "
                "each of the %d workers?",
                _PATIENCE_S,
                len(workers),
            )
        for each in done:
            worker, piece = running.pop(each)
            hand_out(worker)
            yield piece, ray.get(each)
