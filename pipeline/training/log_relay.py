"""Relay progress lines from the workers to the driver's log.

Ray can forward the output of workers, but prefixes each line with the process and adds lines of its
own. Instead, rank 0 sends its lines to an actor, and the driver logs them unchanged.
"""

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_log = logging.getLogger(__name__)


class _Relay:
    """An actor on the driver's node that queues lines from workers for the driver."""

    def __init__(self) -> None:
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()
        self._locations: dict[int, str] = {}

    async def set_location(self, rank: int, host: str, pid: int) -> None:
        """Record the host and process of a worker."""
        self._locations[rank] = f"{host} (pid {pid})"

    async def get_location(self, rank: int) -> str:
        """Return the host and process of a worker, running or lost."""
        return self._locations.get(rank, "an unknown host")

    async def print_line(self, line: str) -> None:
        """Queue a line for the user."""
        await self._lines.put(line)

    async def report_lost(self, rank: int, text: str) -> None:
        """Queue a line about a lost worker."""
        await self._lines.put(f"worker {rank} on {await self.get_location(rank)} {text}")

    async def close(self) -> None:
        """Let the reader stop after the last line."""
        await self._lines.put(None)

    async def next_line(self) -> str | None:
        """Wait for the next line; None after the last."""
        return await self._lines.get()


@contextmanager
def open_relay() -> Iterator[Any]:
    """Start a relay actor, and a thread that logs its lines."""
    # Not soft: on another node the relay could be lost, and with it all further lines.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    relay: Any = ray.remote(_Relay).options(num_cpus=0, scheduling_strategy=here).remote()

    def log_lines() -> None:
        try:
            while (line := ray.get(relay.next_line.remote())) is not None:
                _log.info("%s", line)
        except ray.exceptions.RayError:
            return  # Ray is shutting down, and so is the driver.

    thread = threading.Thread(target=log_lines, name="progress", daemon=True)
    thread.start()
    try:
        yield relay
        relay.close.remote()
        thread.join(timeout=10)
    finally:
        ray.kill(relay)
