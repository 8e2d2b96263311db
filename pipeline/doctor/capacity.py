"""Whether a job's workers fit, and leave CPUs to Ray Data."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pipeline.doctor.facts import Demand, Finding, Level, Node

_SPARE = 1.0
"""CPUs of a node that are Ray Data's."""

_TENTHS = 10


def room(nodes: Sequence[Node], demand: Demand) -> Finding:
    """Place the workers as Ray does, as many as fit on one node before the next, and count.

    With no CPU left anywhere the workers wait for data for ever. A node that has none left gets its
    data from others.
    """
    each = f"{demand.cpus_per_worker:g} CPU" + (" and a GPU" if demand.use_gpu else "")
    workers = "1 worker" if demand.num_workers == 1 else f"{demand.num_workers} workers"
    asked = f"{demand.source}: {workers} of {each}"
    placed = _placed(nodes, demand)
    missing = demand.num_workers - sum(placed.values())
    if missing:
        return Finding(
            check="room",
            level="FAIL",
            text=f"{asked}; there is room for {demand.num_workers - missing}",
            fix=_ways_out(nodes, demand, "add nodes (where they join on demand: --wait-s 900)"),
        )
    level = _level(nodes, demand)
    left = _left(nodes, demand, placed)
    if level == "FAIL":
        total = sum(node.cpus for node in nodes)
        text = (
            f"{asked} take {total - sum(left.values()):g} of the {total:g} CPUs there are; less "
            "than one is left to Ray Data, and the run would wait for ever"
        )
    elif level == "warning":
        bare = [name for name, cpus in left.items() if placed[name] and cpus < _SPARE]
        text = (
            f"{asked} leave no CPU to Ray Data on {', '.join(bare)}, whose data then comes over "
            "the network"
        )
    else:
        least = min((left[name] for name in left if placed[name]), default=0)
        return Finding(check="room", level="ok", text=f"{asked}; CPUs left beside them: {least:g}")
    return Finding(
        check="room",
        level=level,
        text=text,
        fix=_ways_out(nodes, demand, "tell Ray of more CPUs: ray start --num-cpus N"),
    )


def _level(nodes: Sequence[Node], demand: Demand) -> Level:
    placed = _placed(nodes, demand)
    left = _left(nodes, demand, placed)
    if sum(placed.values()) < demand.num_workers or sum(left.values()) < _SPARE:
        return "FAIL"
    is_bare = any(placed[name] and cpus < _SPARE for name, cpus in left.items())
    return "warning" if is_bare else "ok"


def _placed(nodes: Sequence[Node], demand: Demand) -> dict[str, int]:
    """Workers on each node."""
    fits = {}
    for node in nodes:
        by_cpu = math.floor(node.cpus / demand.cpus_per_worker + 1e-6)
        fits[node.name] = min(by_cpu, math.floor(node.gpus)) if demand.use_gpu else by_cpu
    to_place, placed = demand.num_workers, {}
    for name in sorted(fits, key=lambda name: -fits[name]):
        placed[name] = min(to_place, fits[name])
        to_place -= placed[name]
    return placed


def _left(nodes: Sequence[Node], demand: Demand, placed: Mapping[str, int]) -> dict[str, float]:
    """CPUs beside the workers on each node."""
    return {node.name: node.cpus - placed[node.name] * demand.cpus_per_worker for node in nodes}


def _ways_out(nodes: Sequence[Node], demand: Demand, other: str) -> str:
    """Name the largest job of the same kind for which nothing would be said."""
    ways = []
    for tenths in range(math.ceil(demand.cpus_per_worker * _TENTHS) - 1, 0, -1):
        if _level(nodes, replace(demand, cpus_per_worker=tenths / _TENTHS)) == "ok":
            ways.append(f"give each a smaller share: --scale.cpus-per-worker {tenths / _TENTHS:g}")
            break
    for count in range(demand.num_workers - 1, 0, -1):
        if _level(nodes, replace(demand, num_workers=count)) == "ok":
            ways.append(f"take fewer workers: --scale.num-workers {count}")
            break
    return ", or ".join([*ways, other])
