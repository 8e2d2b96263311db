"""Pieces shared by Ray workers: each holds the model and takes the next piece when it is free.

Which worker did a piece changes nothing, so a lost worker's piece is simply done again.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch import nn

from pipeline.evaluation.result import Maker
from pipeline.evaluation.split_reader import Piece

_RETRIES = 3

_PIECES_AHEAD = 2
"""Pieces that wait at each worker, so that none waits for the driver."""

_PATIENCE_S = 120
"""A warning comes when nothing was done for so long: workers that cannot start wait in silence."""

# Ray takes None for: in no group, not even the one of the process that asks.
_NOBODYS: Any = None

_log = logging.getLogger(__name__)


class _Worker:
    """An actor that holds the model."""

    def __init__(self, make: Maker, device: str) -> None:
        self._make = make
        self._device = device
        self._work: Callable[[Piece], Any] | None = None

    def do(self, shared: list[Any], piece: Piece) -> Any:  # noqa: ANN401  what the work gives
        """Give what comes of one piece.

        Args:
            shared: the reference to the model, in a list so that Ray hands over the reference and
                not a copy each time. A restarted worker fetches the model again; given to the
                constructor, Ray would warn that a restart may not find it.
            piece: what to work on.
        """
        if self._work is None:
            self._work = self._make(ray.get(shared[0]).to(self._device))
        return self._work(piece)


def on_workers(
    model: nn.Module,
    pieces: Sequence[Piece],
    make: Maker,
    *,
    num_workers: int,
    use_gpu: bool,
) -> Iterator[tuple[Piece, Any]]:
    """Work on pieces of a split on Ray workers; see pieces.in_order.

    Yields:
        Each piece and what came of it, as they are done.
    """
    remote = ray.remote(
        num_cpus=1,
        num_gpus=int(use_gpu),
        max_restarts=_RETRIES,
        max_task_retries=_RETRIES,
        # In a trial of a sweep they would have to fit into what Tune set aside for its starter.
        scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=_NOBODYS),
    )(_Worker)
    # On the CPU: a worker may have no GPU, or another one.
    shared = ray.put(copy.deepcopy(model).cpu())
    device = "cuda" if use_gpu else "cpu"
    workers: list[Any] = [remote.remote(make, device) for _ in range(min(num_workers, len(pieces)))]
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
) -> Iterator[tuple[Piece, Any]]:
    waiting = iter(pieces)
    running: dict[Any, tuple[Any, Piece]] = {}

    def hand_out(worker: Any) -> None:  # noqa: ANN401  an actor's handle
        piece = next(waiting, None)
        if piece is not None:
            running[worker.do.remote([shared], piece)] = worker, piece

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
