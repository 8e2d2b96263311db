"""Progress lines such as `evaluate 8/60 images  12.3 img/s  eta 0:00:04`."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

LOG_EVERY_S = 10.0

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
    """Yield items, logging a line every `LOG_EVERY_S` seconds and after the last image.

    Args:
        items: processed by the caller between two yields.
        name: first word of the line.
        total: number of images in all items.
        images_of: number of images in an item.
        detail: text to show before the eta, called for each line.
    """
    started = logged = time.perf_counter()
    images = 0
    for item in items:
        yield item
        images += images_of(item)
        now = time.perf_counter()
        if now - logged < LOG_EVERY_S and images < total:
            continue
        logged = now
        rate = images / max(now - started, 1e-9)
        parts = [f"{name} {images}/{total} images", f"{rate:.1f} img/s", detail()]
        eta = format_duration((total - images) / rate) if images else "?"
        _log.info("%s", "  ".join([*filter(None, parts), f"eta {eta}"]))


def format_duration(seconds: float) -> str:
    """Format seconds as h:mm:ss."""
    minutes, whole = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{whole:02d}"
