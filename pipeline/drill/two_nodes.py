"""A Ray cluster of two nodes on this machine, whose second node can be killed and added again.

It runs in its own process: the test process cannot start a second Ray, and nodes only start in a
main thread. It reads commands from its standard input, and stops when the input ends.
"""

import fcntl
import itertools
import json
import random
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import psutil
from ray.cluster_utils import Cluster

CPUS = 3
SECOND_DISK = "disk-1"
"""Folder of the second node's files, until it is lost."""
_ROOT = Path(__file__).parents[2]
_STOP_TIMEOUT_S = 60


class TwoNodes:
    """A running cluster."""

    def __init__(
        self, process: "subprocess.Popen[str]", environment: Mapping[str, str], folder: Path
    ) -> None:
        self._process = process
        answer = self._read_answer()
        self.environment = {**environment, "RAY_ADDRESS": answer["address"]}
        """Environment of processes that use the cluster."""
        self.dashboard = f"http://{answer['dashboard']}"
        self.folder = folder
        """Contains Ray's logs; removed with the cluster."""
        self.head_raylet: int = answer["head"]
        self.second_raylet: int = answer["second"]

    def lose(self) -> None:
        """Kill the second node with kill -9, like a power failure."""
        self._send("lose")

    def add(self) -> None:
        """Start another second node, and wait until it has joined."""
        self.second_raylet = self._send("add")["second"]

    def stop(self) -> None:
        """Kill the whole cluster, like a power failure of the head node."""
        for each in psutil.Process(self._process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                each.kill()

    def _send(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        return self._read_answer()

    def _read_answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answers = (line for line in self._process.stdout if line.startswith("NODES "))
        line = next(answers, None)
        assert line is not None, "the process of the nodes has ended"
        answer: dict[str, Any] = json.loads(line.removeprefix("NODES "))
        return answer


@contextmanager
def two_nodes(
    environment: Mapping[str, str],
    *,
    second_disk: Callable[[Path], AbstractContextManager[None]] | None = None,
) -> Iterator[TwoNodes]:
    """Start a cluster whose nodes have an environment, and stop it at the end.

    Args:
        environment: of the nodes.
        second_disk: makes a disk for the second node in a folder.
    """
    # A separate folder keeps it apart from another Ray on this machine; the path must be short,
    # because it contains sockets.
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder,
        Path(tempfile.gettempdir(), "two_nodes.lock").open("w") as lock,
        second_disk(Path(folder, SECOND_DISK)) if second_disk else nullcontext(),
    ):
        # Ray gives a node 30 s to start, and a test beside this one may start a cluster too.
        fcntl.flock(lock, fcntl.LOCK_EX)
        here = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.drill.two_nodes", folder],
            cwd=_ROOT,
            # Ray writes the address of the last started cluster to this folder.
            env=here | {"RAY_TMPDIR": folder},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            nodes = TwoNodes(process, here, Path(folder))
            fcntl.flock(lock, fcntl.LOCK_UN)
            yield nodes
        finally:
            process.stdin.close()
            try:
                process.wait(timeout=_STOP_TIMEOUT_S)
            finally:
                # Ray's reaper kills the remaining processes.
                process.kill()
                process.stdout.close()


def _serve(folder: Path, commands: TextIO, answers: TextIO) -> None:
    (folder / "ray").mkdir()
    # Hold the lock until the cluster stops.
    lock, machines = _reserve_machines(folder)
    head = next(machines)
    ports = {"gcs_server_port": head.ports[6], "dashboard_port": head.ports[7]}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={**head.settings(), **ports, "include_dashboard": True},
    )

    def add() -> Any:  # noqa: ANN401  a node of Ray
        machine = next(machines)
        node = cluster.add_node(**machine.settings())
        machine.write_address(cluster.address)
        return node

    def answer(**values: str | int) -> None:
        answers.write(f"NODES {json.dumps(values)}\n")
        answers.flush()

    head.write_address(cluster.address)
    second = add()
    cluster.wait_for_nodes()
    answer(
        address=cluster.address,
        dashboard=cluster.webui_url,
        head=_raylet_pid(cluster.head_node),
        second=_raylet_pid(second),
    )
    for command in commands:
        match command.strip():
            case "lose":
                cluster.remove_node(second, allow_graceful=False)
                answer()
            case "add":
                second = add()
                answer(second=_raylet_pid(second))
    cluster.shutdown()  # type: ignore[no-untyped-call]
    lock.close()


class _Machine(NamedTuple):
    """The resources of a simulated machine: a disk, where jobs are unpacked, and ports."""

    disk: str
    ports: range

    def settings(self) -> dict[str, Any]:
        names = ("node_manager", "object_manager", "metrics_agent", "runtime_env_agent",
                 "metrics_export", "dashboard_agent_listen")  # fmt: skip
        return {
            "num_cpus": CPUS,
            "object_store_memory": 80 * 2**20,
            "temp_dir": self.disk,
            **{f"{name}_port": port for name, port in zip(names, self.ports, strict=False)},
            "min_worker_port": self.ports[10],
            "max_worker_port": self.ports[-1],
        }

    def write_address(self, address: str) -> None:
        """Write the cluster's address as `ray start` does, for jobs that are submitted.

        Without it a job may connect to another Ray on this machine.
        """
        Path(self.disk, "ray_current_cluster").write_text(address)


def _reserve_machines(folder: Path) -> tuple[socket.socket, Iterator[_Machine]]:
    """Return machines, of which nine can run at once, and a socket that reserves their ports.

    Ray's servers silently share a port with another Ray on this machine, and then one cluster gets
    the messages of the other. So they must not use the system's ephemeral ports.
    """
    for first in random.sample(range(10_000, 32_000, 1000), k=22):
        lock = socket.socket()
        try:
            lock.bind(("127.0.0.1", first))
        except OSError:
            lock.close()
            continue
        # The head has the first ports; a node that was lost leaves its own to a later one.
        head, *others = (range(start, start + 99) for start in range(first + 1, first + 900, 100))
        ports = itertools.chain([head], itertools.cycle(others))
        return lock, (_Machine(str(folder / f"disk-{n}"), p) for n, p in enumerate(ports))
    raise OSError("all ports from 10000 to 32000 are taken")


def _raylet_pid(node: Any) -> int:  # noqa: ANN401
    return int(node.all_processes["raylet"][0].process.pid)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), sys.stdin, sys.stdout)
