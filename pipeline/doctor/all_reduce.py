"""Run and time an all-reduce over processes on all nodes, as every training step does.

The actor's code is pickled by value (see probe.py).
"""

import datetime
import socket
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.doctor.facts import AllReduce, Node

_MIN_PROCESSES = 2
_BYTES = 64 * 2**20
_ROUNDS = 3


class Peer:
    """One process of the all-reduce."""

    def address(self) -> str:
        """Import torch, and return a free address of this process."""
        import torch  # noqa: F401, PLC0415  keeps the import out of the timing

        with socket.socket() as free:
            free.bind(("", 0))
            host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
            return f"{host}:{free.getsockname()[1]}"

    def reduce(
        self, *, rank: int, count: int, address: str, backend: str, timeout_s: float
    ) -> float:
        """Sum a tensor over all processes; return the seconds of one sum."""
        import torch  # noqa: PLC0415
        import torch.distributed as dist  # noqa: PLC0415

        device = torch.device("cuda" if backend == "nccl" else "cpu")
        dist.init_process_group(
            backend,
            init_method=f"tcp://{address}",
            rank=rank,
            world_size=count,
            timeout=datetime.timedelta(seconds=timeout_s),
        )
        try:
            tensor = torch.full((_BYTES // 4,), rank + 1.0, device=device)
            dist.all_reduce(tensor)
            # Synchronizes with the GPU; the first sum opens the connections and is not timed.
            if float(tensor[-1]) != count * (count + 1) / 2:
                raise ValueError(f"the sum over {count} processes is {float(tensor[-1])}")
            tensor.zero_()
            began = time.perf_counter()
            for _ in range(_ROUNDS):
                dist.all_reduce(tensor)
            tensor[-1].item()
            return (time.perf_counter() - began) / _ROUNDS
        finally:
            dist.destroy_process_group()


def run_all_reduce(nodes: Sequence[Node], *, use_gpu: bool, timeout_s: float) -> AllReduce | None:
    """Sum over one process on each node, or over two processes on a single node.

    Args:
        nodes: the nodes that answer.
        use_gpu: use NCCL between GPUs, if there are any.
        timeout_s: limit for the start of the processes, and again for the sum.

    Returns:
        None if only one process fits, as with a single GPU.
    """
    use_gpu = use_gpu and any(node.gpus >= 1 for node in nodes)
    placed = _choose_nodes(nodes, use_gpu=use_gpu)
    if len(placed) < _MIN_PROCESSES:
        return None
    backend = "nccl" if use_gpu else "gloo"
    names = tuple(node.name for node in placed)
    remote: Any = ray.remote(Peer)
    peers = [
        remote.options(
            num_cpus=0,
            num_gpus=int(use_gpu),
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False),
        ).remote()
        for node in placed
    ]
    try:
        ready, error = _get_all([peer.address.remote() for peer in peers], names, timeout_s)
        if error:
            return AllReduce(backend=backend, nodes=names, error=error, stage="start")
        refs = [
            peer.reduce.remote(
                rank=rank,
                count=len(peers),
                address=ready[0],
                backend=backend,
                timeout_s=timeout_s,
            )
            for rank, peer in enumerate(peers)
        ]
        seconds, error = _get_all(refs, names, timeout_s)
        if error:
            return AllReduce(backend=backend, nodes=names, error=error)
        return AllReduce(backend=backend, nodes=names, sent_bytes=_BYTES, seconds=max(seconds))
    finally:
        for peer in peers:
            ray.kill(peer)


def _choose_nodes(nodes: Sequence[Node], *, use_gpu: bool) -> list[Node]:
    able = [node for node in nodes if (node.gpus >= 1 if use_gpu else node.cpus > 0)]
    if len(able) != 1:
        return able
    return able * min(_MIN_PROCESSES, int(able[0].gpus) if use_gpu else _MIN_PROCESSES)


def _get_all(refs: list[Any], names: Sequence[str], timeout_s: float) -> tuple[list[Any], str]:
    """Get all results, or return the error of the node that failed first or is late."""
    waiting = list(refs)
    deadline = time.monotonic() + timeout_s
    while waiting:
        # One at a time: when one fails, the others only wait for it.
        done, waiting = ray.wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
        if not done:
            late = sorted({names[refs.index(ref)] for ref in waiting})
            return [], f"{', '.join(late)}: no answer in {timeout_s:g} s"
        try:
            ray.get(done[0])
        except ray.exceptions.RayError as error:
            return [], f"{names[refs.index(done[0])]}: {str(error).strip().splitlines()[-1][:300]}"
    return ray.get(refs), ""
