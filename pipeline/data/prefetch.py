"""Prefetch items in threads, in order, and stop cleanly when the consumer leaves."""

import queue
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

From = TypeVar("From")
To = TypeVar("To")

_POLL_S = 0.1


def prefetch(
    source: Generator[From, None, None],
    work: Callable[[From], To],
    *,
    max_pending: int,
    threads: int,
) -> Generator[To, None, None]:
    """Yield work(x) for each x of the source, in order, computed in the background.

    An error of the source or of `work` is raised at its position in the order. Closing the iterator
    ends all threads.

    Args:
        source: consumed in a thread of its own.
        work: called from several threads.
        max_pending: most results that are computed or waiting at once.
        threads: how many call `work`.
    """
    waiting: queue.Queue[Future[To] | None] = queue.Queue(maxsize=max_pending)
    closed = threading.Event()
    with ThreadPoolExecutor(threads, thread_name_prefix="collate") as pool:

        def draw() -> None:
            try:
                for each in source:
                    if not _put(waiting, pool.submit(work, each), closed):
                        return
                _put(waiting, None, closed)
            except BaseException as error:
                failed: Future[To] = Future()
                failed.set_exception(error)
                _put(waiting, failed, closed)
            finally:
                source.close()

        # A daemon: a source that blocks forever must not keep the process alive.
        thread = threading.Thread(target=draw, name="draw", daemon=True)
        thread.start()
        try:
            while (future := waiting.get()) is not None:
                yield future.result()
        finally:
            closed.set()
            thread.join(timeout=10 * _POLL_S)
            pool.shutdown(wait=False, cancel_futures=True)


def _put(
    waiting: "queue.Queue[Future[To] | None]", future: Future[To] | None, closed: threading.Event
) -> bool:
    """Wait for a free place in the queue; return False if the consumer has left."""
    while not closed.is_set():
        try:
            waiting.put(future, timeout=_POLL_S)
        except queue.Full:
            continue
        return True
    return False
