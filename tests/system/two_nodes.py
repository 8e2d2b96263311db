"""A Ray cluster of two nodes on this machine, the second of which can be lost and added again.

It lives in a process of its own: a second Ray in the process of the tests would not come up beside
theirs, and nodes start in a main thread only. Lines on its standard input command it, and their end
ends it.
"""

import json
import random
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from ray.cluster_utils import Cluster

CPUS = 3
_ROOT = Path(__file__).parents[2]
_ENDS_WITHIN_S = 60


class TwoNodes:
    """The cluster, as a test commands it."""

    def __init__(
        self, process: "subprocess.Popen[str]", environment: Mapping[str, str], folder: Path
    ) -> None:
        self._process = process
        told = self._answer()
        self.environment = {**environment, "RAY_ADDRESS": told["address"]}
        """Of who uses the cluster."""
        self.dashboard = f"http://{told['dashboard']}"
        self.folder = folder
        """Holds Ray's own logs; it is gone when the cluster is."""
        self.head_raylet: int = told["head"]
        self.second_raylet: int = told["second"]

    def lose(self) -> None:
        """Take the second node away with kill -9, as a machine that loses its power."""
        self._say("lose")

    def add(self) -> None:
        """Start a second node again; it has joined when this returns."""
        self.second_raylet = self._say("add")["second"]

    def _say(self, word: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answers = (line for line in self._process.stdout if line.startswith("NODES "))
        line = next(answers, None)
        assert line is not None, "the nodes' process ended"
        return json.loads(line.removeprefix("NODES "))


@contextmanager
def two_nodes(environment: Mapping[str, str]) -> Iterator[TwoNodes]:
    """Start a cluster whose nodes have an environment; end it, whatever happens meanwhile."""
    # A folder of its own, so that another Ray on this machine is left alone; short, because sockets
    # are in it.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        here = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.system.two_nodes", folder],
            cwd=_ROOT,
            # Where Ray notes the address of the cluster that was started last.
            env=here | {"RAY_TMPDIR": folder},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield TwoNodes(process, here, Path(folder))
        finally:
            process.stdin.close()
            try:
                process.wait(timeout=_ENDS_WITHIN_S)
            finally:
                # Ray's reaper ends what this process leaves behind.
                process.kill()
                process.stdout.close()


def _serve(folder: Path, commands: TextIO, answers: TextIO) -> None:
    (folder / "ray").mkdir()
    # The lock is held as long as the cluster lives.
    lock, places = _places(folder)
    head = next(places)
    ports = {"gcs_server_port": head.ports[6], "dashboard_port": head.ports[7]}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={**head.settings(), **ports, "include_dashboard": True},
    )

    def add() -> Any:
        place = next(places)
        node = cluster.add_node(**place.settings())
        place.note(cluster.address)
        return node

    def answer(**told: str | int) -> None:
        answers.write(f"NODES {json.dumps(told)}\n")
        answers.flush()

    head.note(cluster.address)
    second = add()
    cluster.wait_for_nodes()
    answer(
        address=cluster.address,
        dashboard=cluster.webui_url,
        head=_raylet(cluster.head_node),
        second=_raylet(second),
    )
    for command in commands:
        match command.strip():
            case "lose":
                cluster.remove_node(second, allow_graceful=False)
                answer()
            case "add":
                second = add()
                answer(second=_raylet(second))
    cluster.shutdown()
    lock.close()


class _Place(NamedTuple):
    """What a machine of its own has: a disk, where a job's folder is unpacked, and ports."""

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

    def note(self, address: str) -> None:
        """Note the cluster's address as `ray start` does: who submits a job is led by it.

        Without, a job on a machine with another Ray may be led to that one.
        """
        Path(self.disk, "ray_current_cluster").write_text(address)


def _places(folder: Path) -> tuple[socket.socket, Iterator[_Place]]:
    """Give places for nine nodes, and a socket that keeps them from other clusters of this kind.

    Ray's servers share a port with those of another Ray on this machine and do not notice; then
    one cluster gets what was meant for the other. So they get no port that the system hands out.
    """
    for first in random.sample(range(10_000, 32_000, 1000), k=22):
        lock = socket.socket()
        try:
            lock.bind(("127.0.0.1", first))
        except OSError:
            lock.close()
            continue
        starts = range(first + 1, first + 900, 100)
        ports = (range(start, start + 99) for start in starts)
        return lock, (_Place(str(folder / f"disk-{p[0]}"), p) for p in ports)
    raise OSError("all ports from 10000 to 32000 are taken")


def _raylet(node: Any) -> int:
    return node.all_processes["raylet"][0].process.pid


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), sys.stdin, sys.stdout)
