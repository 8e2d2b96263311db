"""Interrupt a run whose Ray is gone: Ray itself would wait for a minute, and then exit silently."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray

from pipeline.ray_connection import accepts_connections
from pipeline.training.stop import StopRequest

_LOOK_EVERY_S = 1.0
_LOST_AFTER_S = 20.0
"""A head node that comes back within this time, with its state, continues the run."""
_LOST_AFTER_SIGTERM_S = 2.0
"""A signal that stops the run may have stopped Ray as well, which then does not come back."""
_INTERRUPTED_AFTER_S = 10.0


class RayLostError(Exception):
    """The head of the connected Ray accepts no connections."""


class RayLoss:
    """Whether Ray was lost during a run.

    Args:
        stop: of the run.
        give_up: ends this process with a message. Called in another thread, if Ray's own code does
            not let the main thread be interrupted.
    """

    def __init__(self, stop: StopRequest, *, give_up: Callable[[Exception], None]) -> None:
        self.error: RayLostError | None = None
        """Why, once it is."""
        self.ended = threading.Event()
        self._stop, self._give_up = stop, give_up

    def watch(self, address: str, main_thread: int) -> None:
        """Look whether Ray's head accepts connections; if not, interrupt the main thread."""
        seen_s = time.monotonic()
        while not self.ended.wait(_LOOK_EVERY_S):
            limit_s = _LOST_AFTER_SIGTERM_S if self._stop.action else _LOST_AFTER_S
            if accepts_connections(address):
                seen_s = time.monotonic()
            elif time.monotonic() - seen_s > limit_s:
                self.error = RayLostError(f"its head at {address} accepts no connections")
                signal.pthread_kill(main_thread, signal.SIGUSR1)
                if not self.ended.wait(_INTERRUPTED_AFTER_S):
                    self._give_up(self.error)
                return


@contextmanager
def interrupt_if_ray_is_lost(loss: RayLoss) -> Iterator[None]:
    """Interrupt the block if Ray is gone, by any exception: Ray may replace the one raised here.

    In another thread than the main one, as in a trial of a sweep, do nothing.
    """
    main_thread = threading.current_thread()
    if main_thread is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        if loss.error is not None:
            raise loss.error

    before = signal.signal(signal.SIGUSR1, interrupt)
    address = ray.get_runtime_context().gcs_address
    thread = threading.Thread(
        target=loss.watch, args=(address, main_thread.ident), name="ray loss", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        loss.ended.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)
