"""The way of progress lines from workers to the driver's log.

Ray can forward the output of workers itself, but it puts the process in front of each line and
mixes in its own. Rank 0 hands its lines to an actor instead, from which the driver logs them as
they are.
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
    """An actor beside the driver: takes lines from workers, hands them to the driver."""

    def __init__(self) -> None:
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()
        self._places: dict[int, str] = {}

    async def started(self, rank: int, host: str, pid: int) -> None:
        """Note where a worker runs."""
        self._places[rank] = f"{host} (pid {pid})"

    async def place_of(self, rank: int) -> str:
        """Say where a worker runs, or ran."""
        return self._places.get(rank, "an unknown host")

    async def say(self, line: str) -> None:
        """Take a line for the user."""
        await self._lines.put(line)

    async def lost(self, rank: int, text: str) -> None:
        """Take a line about a lost worker."""
        await self._lines.put(f"worker {rank} on {await self.place_of(rank)} {text}")

    async def end(self) -> None:
        """Let the reader leave once it has read all lines."""
        await self._lines.put(None)

    async def next_line(self) -> str | None:
        """Wait for the next line; None after the last."""
        return await self._lines.get()


@contextmanager
def open_relay() -> Iterator[Any]:
    """Run a relay, and a thread that logs what it hands out."""
    # Not soft: that may be another node, and when it is lost nothing more of the run is told.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    relay: Any = ray.remote(_Relay).options(num_cpus=0, scheduling_strategy=here).remote()

    def log_lines() -> None:
        try:
            while (line := ray.get(relay.next_line.remote())) is not None:
                _log.info("%s", line)
        except ray.exceptions.RayError:
            return  # Ray is going down, and the driver with it.

    thread = threading.Thread(target=log_lines, name="progress", daemon=True)
    thread.start()
    try:
        yield relay
        relay.end.remote()
        thread.join(timeout=10)
    finally:
        ray.kill(relay)
