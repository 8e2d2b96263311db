"""Do work ahead of its consumer in threads, in order, and end cleanly when the consumer leaves."""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

From = TypeVar("From")
To = TypeVar("To")

_POLL_S = 0.1


def ahead(
    source: Generator[From, None, None], work: Callable[[From], To], *, most: int, threads: int
) -> Iterator[To]:
    """Yield work(x) for each x of the source, in order, made in the background.

    One thread draws from the source, `threads` do the work. An error of either is raised at its
    place in the order. Closing the iterator ends all of them.

    Args:
        source: drawn from in a thread of its own.
        work: what to do with each; must be safe to call from several threads.
        most: results that may be under way or waiting.
        threads: how many work at once.
    """
    waiting: queue.Queue[Future[To] | None] = queue.Queue(maxsize=most)
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

        # A daemon: a source that never answers must not keep the process from ending.
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
    """Wait for room; give up, and say so, when the consumer has left."""
    while not closed.is_set():
        try:
            waiting.put(future, timeout=_POLL_S)
        except queue.Full:
            continue
        return True
    return False
