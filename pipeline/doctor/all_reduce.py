"""Sum over processes on all nodes, as every training step does, and say how fast it was.

The actor travels to the nodes as it is (see probe.py).
"""

import datetime
import socket
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.doctor.facts import AllReduce, Node

_FEWEST = 2
_BYTES = 64 * 2**20
_ROUNDS = 3


class Peer:
    """One process of the sum."""

    def address(self) -> str:
        """Import torch, and say where the others find this process."""
        import torch  # noqa: F401, PLC0415  seconds that belong to no measurement

        with socket.socket() as free:
            free.bind(("", 0))
            host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
            return f"{host}:{free.getsockname()[1]}"

    def reduce(
        self, *, rank: int, count: int, address: str, backend: str, timeout_s: float
    ) -> float:
        """Sum a tensor over all processes; the seconds that one sum took."""
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
            # Also waits for the GPU; the first sum opens the connections and is not timed.
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


def all_reduce(nodes: Sequence[Node], *, use_gpu: bool, timeout_s: float) -> AllReduce | None:
    """Sum over one process on each node; over two processes where there is one node.

    Args:
        nodes: those that answer.
        use_gpu: between GPUs, where there are any.
        timeout_s: longest wait for the processes to start, and again for the sum.

    Returns:
        None where there is no room for two processes, as with one GPU: nothing is summed then.
    """
    use_gpu = use_gpu and any(node.gpus >= 1 for node in nodes)
    placed = _places(nodes, use_gpu=use_gpu)
    if len(placed) < _FEWEST:
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
        ready, error = _all_of([peer.address.remote() for peer in peers], names, timeout_s)
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
        seconds, error = _all_of(refs, names, timeout_s)
        if error:
            return AllReduce(backend=backend, nodes=names, error=error)
        return AllReduce(backend=backend, nodes=names, sent_bytes=_BYTES, seconds=max(seconds))
    finally:
        for peer in peers:
            ray.kill(peer)


def _places(nodes: Sequence[Node], *, use_gpu: bool) -> list[Node]:
    able = [node for node in nodes if (node.gpus >= 1 if use_gpu else node.cpus > 0)]
    if len(able) != 1:
        return able
    return able * min(_FEWEST, int(able[0].gpus) if use_gpu else _FEWEST)


def _all_of(refs: list[Any], names: Sequence[str], timeout_s: float) -> tuple[list[Any], str]:
    """Wait for all, or say which one failed first or is missing."""
    waiting = list(refs)
    deadline = time.monotonic() + timeout_s
    while waiting:
        # One at a time, for when one fails the others only wait for it.
        done, waiting = ray.wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
        if not done:
            late = sorted({names[refs.index(ref)] for ref in waiting})
            return [], f"{', '.join(late)}: no answer in {timeout_s:g} s"
        try:
            ray.get(done[0])
        except ray.exceptions.RayError as error:
            return [], f"{names[refs.index(done[0])]}: {str(error).strip().splitlines()[-1][:300]}"
    return ray.get(refs), ""
