"""Faults that come at random while a run trains on a cluster of two nodes."""

import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping

import psutil

from pipeline.drill.command import Command
from pipeline.drill.process_watch import classify, list_processes
from pipeline.drill.tracking_server import TrackingServer
from pipeline.drill.two_nodes import TwoNodes
from pipeline.errors import DrillError

_LONGEST_PAUSE_S = 20.0


class Target:
    """The job, cluster and server that a fault disturbs.

    Args:
        start: types the job's command.
        nodes: the cluster.
        tracking: the MLflow server.
        draw: the random numbers.
    """

    def __init__(
        self,
        *,
        start: Callable[[], Command],
        nodes: TwoNodes,
        tracking: TrackingServer,
        draw: random.Random,
    ) -> None:
        self._start, self.nodes, self.tracking, self.draw = start, nodes, tracking, draw
        self._jobs = [start()]

    @property
    def job(self) -> Command:
        """The job that runs."""
        return self._jobs[-1]

    def restart_job(self) -> None:
        """Type the command of the job again."""
        self._jobs.append(self._start())

    @property
    def log(self) -> list[str]:
        """Lines that all jobs have printed."""
        return [line.text for job in self._jobs for line in job.lines]

    def wait_a_while(self) -> None:
        """Leave things as they are for up to 20 s."""
        time.sleep(self.draw.uniform(1, _LONGEST_PAUSE_S))


def kill_worker(target: Target) -> None:
    """Kill a training worker."""
    if workers := _find("RayTrainWorker"):
        _send(target.draw.choice(workers), signal.SIGKILL)


def pause_worker(target: Target) -> None:
    """Stop a training worker for up to 20 s."""
    if workers := _find("RayTrainWorker"):
        worker = target.draw.choice(workers)
        _send(worker, signal.SIGSTOP)
        target.wait_a_while()
        _send(worker, signal.SIGCONT)


def kill_data_actor(target: Target) -> None:
    """Kill the actor that hands the data to the workers."""
    if actors := _find("SplitCoordinator"):
        _send(target.draw.choice(actors), signal.SIGKILL)


def replace_node(target: Target) -> None:
    """Kill the second node, and add another one."""
    target.nodes.lose()
    target.wait_a_while()
    target.nodes.add()


def kill_driver(target: Target) -> None:
    """Kill the job, and type its command again."""
    target.job.kill()
    target.restart_job()


def terminate_driver(target: Target) -> None:
    """Send SIGTERM to the job, and type its command again."""
    target.job.send(signal.SIGTERM)
    if (code := target.job.wait()) not in {0, 143}:
        raise DrillError(f"after SIGTERM the job ended with {code}:\n{target.job.tail}")
    target.restart_job()


def restart_tracking(target: Target) -> None:
    """Kill the MLflow server, and start it again."""
    target.tracking.kill()
    target.wait_a_while()
    target.tracking.start()


SOAK_FAULTS: Mapping[str, Callable[[Target], None]] = {
    "worker-killed": kill_worker,
    "worker-pauses": pause_worker,
    "data-killed": kill_data_actor,
    "node-replaced": replace_node,
    "driver-killed": kill_driver,
    "sigterm": terminate_driver,
    "mlflow-restarted": restart_tracking,
}
RESTARTING = {"worker-killed", "data-killed", "node-replaced"}
"""Those after which Ray starts the workers again."""


def schedule_faults(draw: random.Random, *, every_s: float) -> Iterator[tuple[float, str]]:
    """Yield pauses and faults: each fault once in random order, then all again.

    Args:
        draw: the random numbers.
        every_s: mean of the pauses, which are random at a constant rate.
    """
    while True:
        for name in draw.sample(list(SOAK_FAULTS), k=len(SOAK_FAULTS)):
            yield draw.expovariate(1 / every_s), name


def _find(kind: str) -> list[int]:
    found = []
    for process in list_processes():
        try:
            if classify(process.cmdline()) == kind:
                found.append(process.pid)
        except psutil.NoSuchProcess:
            continue
    return sorted(found)


def _send(pid: int, number: signal.Signals) -> None:
    try:
        psutil.Process(pid).send_signal(number)
    except psutil.NoSuchProcess:
        # It ended by itself, as at the end of a run.
        return
