"""Progress lines such as `evaluate 8/60 images  12.3 img/s  eta 0:00:04`.

On a terminal there is a bar instead, which leaves only its last line; files and pipes get a line
every `LOG_EVERY_S` seconds.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

LOG_EVERY_S = 10.0
_SILENT = (
    "%s: no task has finished for %.0f s; look at the nodes: ray status. While the memory of a "
    "node is full, Ray kills its tasks and starts them again without saying so"
)

Item = TypeVar("Item")

_log = logging.getLogger(__name__)


def log_progress(
    items: Iterable[Item],
    name: str,
    *,
    total: int,
    images_of: Callable[[Item], int] = lambda _: 1,
    detail: Callable[[], str] = str,
) -> Iterator[Item]:
    """Yield items, showing how many images are done.

    Args:
        items: processed by the caller between two yields.
        name: first word of the line.
        total: number of images in all items.
        images_of: number of images in an item.
        detail: text to show before the eta, called for each line.
    """
    started = logged = time.perf_counter()
    images = 0
    with _open_bar(name, total=total) as bar:
        for item in items:
            yield item
            images += images_of(item)
            if bar is not None:
                bar.set_postfix_str(detail(), refresh=False)
                bar.update(images_of(item))
            now = time.perf_counter()
            is_due = bar is None and now - logged >= LOG_EVERY_S
            if not is_due and images < total:
                continue
            logged = now
            rate = images / max(now - started, 1e-9)
            parts = [f"{name} {images}/{total} images", f"{rate:.1f} img/s", detail()]
            eta = format_duration((total - images) / rate) if images else "?"
            _log.info("%s", "  ".join([*filter(None, parts), f"eta {eta}"]))


def log_silence(items: Iterable[Item], name: str, *, seconds: float = 60.0) -> Iterator[Item]:
    """Yield what Ray's tasks return, and log a line each time that none returns for long.

    Args:
        items: of the tasks.
        name: of the work, first in the line.
        seconds: from the last item to the line.
    """
    iterator = iter(items)
    while True:
        timer = threading.Timer(seconds, _log.warning, (_SILENT, name, seconds))
        timer.daemon = True
        timer.start()
        try:
            item = next(iterator)
        except StopIteration:
            return
        finally:
            timer.cancel()
        yield item


def log_bytes(
    chunks: Iterable[bytes], name: str, *, total: int | None, start: int = 0
) -> Iterator[bytes]:
    """Yield the chunks of a file, showing how much of it has arrived.

    Args:
        chunks: of the file.
        name: first words of the line.
        total: bytes of the whole file; None if unknown.
        start: bytes that arrived before.
    """
    started = logged = time.perf_counter()
    done = start
    with _open_bar(name, total=total, unit="B", initial=start) as bar:
        for chunk in chunks:
            yield chunk
            done += len(chunk)
            if bar is not None:
                bar.update(len(chunk))
            now = time.perf_counter()
            is_due = bar is None and now - logged >= LOG_EVERY_S
            if not is_due and done != total:
                continue
            logged = now
            rate = (done - start) / max(now - started, 1e-9)
            whole = f"/{total / 1e6:.1f}" if total else ""
            eta = format_duration((total - done) / rate) if total and rate else "?"
            _log.info("%s %.1f%s MB  %.1f MB/s  eta %s", name, done / 1e6, whole, rate / 1e6, eta)


@contextmanager
def _open_bar(
    name: str, *, total: int | None, unit: str = " img", initial: int = 0
) -> "Iterator[tqdm[None] | None]":
    """Open a bar on a terminal, above which log lines appear; None anywhere else."""
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        yield None
        return
    from tqdm import tqdm  # noqa: PLC0415  only on a terminal
    from tqdm.contrib.logging import logging_redirect_tqdm  # noqa: PLC0415

    with (
        logging_redirect_tqdm(),
        tqdm(
            total=total,
            initial=initial,
            desc=name,
            unit=unit,
            unit_scale=unit == "B",
            file=sys.stdout,
            leave=False,
            dynamic_ncols=True,
        ) as bar,
    ):
        yield bar


def format_duration(seconds: float) -> str:
    """Format seconds as h:mm:ss."""
    minutes, whole = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{whole:02d}"
