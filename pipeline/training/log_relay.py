"""Relay progress lines from the workers to the driver's log, and a request to stop to the workers.

Ray can forward the output of workers, but prefixes each line with the process and adds lines of its
own. Instead, rank 0 sends its lines to an actor, and the driver logs them unchanged.
"""

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.training.stop import Stop, StopRequest

if TYPE_CHECKING:
    # The relay's own process imports this module, and should not import torch.
    from pipeline.training.step import WorkerContext

_log = logging.getLogger(__name__)

_POLL_S = 0.2
_ANSWER_S = 10.0


class _Relay:
    """An actor on the driver's node that queues lines from workers for the driver."""

    def __init__(self) -> None:
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()
        self._locations: dict[int, str] = {}
        self._stop: Stop = ""
        self._stop_requested = asyncio.Event()
        self._next_steps: dict[int, int] = {}

    async def set_location(self, rank: int, host: str, pid: int) -> None:
        """Record the host and process of a worker."""
        self._locations[rank] = f"{host} (pid {pid})"
        self._next_steps.pop(rank, None)

    async def request_stop(self, stop: Stop) -> bool:
        """Ask the workers to stop; return whether any answers, which takes a moment.

        None does before the first has started, and while a run waits for nodes.
        """
        self._stop = stop
        self._stop_requested.set()
        end_s = time.monotonic() + (_ANSWER_S if self._locations else 0)
        while not self._next_steps and time.monotonic() < end_s:
            await asyncio.sleep(_POLL_S)
        return bool(self._next_steps)

    async def wait_for_stop(self) -> None:
        """Wait until the workers are asked to stop."""
        await self._stop_requested.wait()

    async def agree_on_stop(self, rank: int, next_step: int, world_size: int) -> tuple[int, Stop]:
        """Return the step before which all workers stop, the latest that any of them needs."""
        self._next_steps[rank] = next_step
        while len(self._next_steps) < world_size:
            await asyncio.sleep(_POLL_S)
        return max(self._next_steps.values()), self._stop

    async def get_location(self, rank: int) -> str:
        """Return the host and process of a worker, running or lost."""
        return self._locations.get(rank, "an unknown host")

    async def print_line(self, line: str) -> None:
        """Queue a line for the user."""
        await self._lines.put(line)

    async def report_worker(self, rank: int, text: str) -> None:
        """Queue a line about a worker."""
        await self._lines.put(f"worker {rank} on {await self.get_location(rank)} {text}")

    async def close(self) -> None:
        """Let the reader stop after the last line."""
        await self._lines.put(None)

    async def next_line(self) -> str | None:
        """Wait for the next line; None after the last."""
        return await self._lines.get()


class StopAgreement:
    """Lets all workers of a run stop before the same step.

    A worker that left alone would leave the others waiting for its gradients. So each worker that
    hears of the request tells the others the next step before which it can stop, and waits there
    until all have answered; they stop before the latest of these steps.
    """

    def __init__(self, relay: Any, *, worker: "WorkerContext") -> None:  # noqa: ANN401  an actor's handle
        self._relay, self._worker = relay, worker
        self._lock = threading.Lock()
        self._next_step = 0
        self._is_requested = False
        self._is_agreed = threading.Event()
        self._stop_step = 0
        self._stop: Stop = ""
        threading.Thread(target=self._agree, name="stop", daemon=True).start()

    def stop_before(self, step: int) -> Stop:
        """Return how this worker must stop before a step; "" to train it."""
        with self._lock:
            if not self._is_requested:
                self._next_step = step + 1
                return ""
        self._is_agreed.wait()
        return self._stop if step >= self._stop_step else ""

    def _agree(self) -> None:
        with suppress(ray.exceptions.RayError):  # The run ends.
            ray.get(self._relay.wait_for_stop.remote())
            with self._lock:
                self._is_requested = True
            self._stop_step, self._stop = ray.get(
                self._relay.agree_on_stop.remote(
                    self._worker.rank, self._next_step, self._worker.world_size
                )
            )
        self._is_agreed.set()


@contextmanager
def open_relay(stop: StopRequest) -> Iterator[Any]:
    """Start a relay actor, a thread that logs its lines, and one that passes on a stop request."""
    # Not soft: on another node the relay could be lost, and with it all further lines.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    relay: Any = ray.remote(_Relay).options(num_cpus=0, scheduling_strategy=here).remote()

    def log_lines() -> None:
        try:
            while (line := ray.get(relay.next_line.remote())) is not None:
                _log.info("%s", line)
        except ray.exceptions.RayError:
            return  # Ray is shutting down, and so is the driver.

    closed = threading.Event()

    def pass_on_stop() -> None:
        while not closed.is_set():
            if stop.wait(_POLL_S):
                with suppress(ray.exceptions.RayError):
                    if not ray.get(relay.request_stop.remote(stop.action)):
                        # No worker will answer: the second signal ends the job at once.
                        os.kill(os.getpid(), signal.SIGTERM)
                return

    thread = threading.Thread(target=log_lines, name="progress", daemon=True)
    thread.start()
    threading.Thread(target=pass_on_stop, name="stop", daemon=True).start()
    try:
        yield relay
        relay.close.remote()
        thread.join(timeout=10)
    finally:
        closed.set()
        # In a thread: without Ray's head this never returns.
        killer = threading.Thread(target=ray.kill, args=(relay,), name="kill relay", daemon=True)
        killer.start()
        killer.join(timeout=10)
