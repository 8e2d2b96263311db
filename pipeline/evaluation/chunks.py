"""Work on the pieces of a split, here or shared by Ray workers, with a line of progress at times.

Who does a piece changes nothing in what comes of it, and all parts are put in the order of the
pieces, so any number of workers gives the same numbers.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from pipeline.evaluation.result import Maker, Part
from pipeline.evaluation.split_reader import Piece

IMAGES_EACH = 8
"""Images of a piece; a progress line can come after each."""

_LOG_EVERY_S = 10.0

_log = logging.getLogger(__name__)


def in_order(
    model: nn.Module,
    pieces: Sequence[Piece],
    make: Maker,
    *,
    num_workers: int = 0,
    use_gpu: bool = False,
) -> list[Any]:
    """Work on all pieces.

    Args:
        model: sent to the workers, if there are any.
        pieces: of the split.
        make: makes what works on them; it is sent to the workers too.
        num_workers: Ray workers that share the pieces; 0 works in this process, without Ray.
        use_gpu: on a GPU, one for each worker; else each worker takes a CPU, and this process the
            device where the model is.

    Returns:
        The parts, in the order of the pieces.
    """
    done: Iterator[tuple[Piece, Part]]
    if num_workers == 0:
        work = make(model.to("cuda") if use_gpu else model)
        done = ((piece, work(piece)) for piece in pieces)
    else:
        from pipeline.evaluation.ray_workers import on_workers  # noqa: PLC0415  imports ray

        done = on_workers(model, pieces, make, num_workers=num_workers, use_gpu=use_gpu)
    parts = dict(_told(done, total=sum(len(piece.rows) for piece in pieces)))
    return [parts[piece] for piece in pieces]


def _told(done: Iterable[tuple[Piece, Part]], *, total: int) -> Iterator[tuple[Piece, Part]]:
    """Pass parts on, with a progress line now and then."""
    started = told = time.perf_counter()
    images = 0
    for piece, part in done:
        yield piece, part
        images += len(piece.rows)
        now = time.perf_counter()
        if now - told >= _LOG_EVERY_S or images == total:
            told = now
            speed = images / (now - started)
            eta_s = round((total - images) / speed)
            _log.info("evaluate %d/%d images  %.1f img/s  eta %ds", images, total, speed, eta_s)
