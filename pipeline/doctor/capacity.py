"""Check that a job's workers fit, and leave CPUs to Ray Data."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pipeline.doctor.facts import Demand, Finding, Level, Node
from pipeline.text import format_count

_DATA_CPUS = 1.0
"""CPUs of a node that Ray Data needs."""

_TENTHS = 10


def check_capacity(nodes: Sequence[Node], demand: Demand) -> Finding:
    """Check the CPUs that remain after Ray has placed the workers, filling node after node.

    Without a free CPU anywhere, the workers wait for data forever. A node without a free CPU gets
    its data from other nodes.
    """
    cpus = f"{demand.cpus_per_worker:g} CPU" + ("" if demand.cpus_per_worker == 1 else "s")
    each = f"{cpus} and a GPU each" if demand.use_gpu else f"{cpus} each"
    workers = f"{demand.source}: {format_count(demand.num_workers, 'worker')} with {each}"
    placed = _place_workers(nodes, demand)
    missing = demand.num_workers - sum(placed.values())
    if missing:
        return Finding(
            check="capacity",
            level="FAIL",
            text=f"{workers}; only {demand.num_workers - missing} fit",
            fix=_suggest(nodes, demand, "add nodes (if an autoscaler adds them: --wait-s 900)"),
        )
    level = _get_level(nodes, demand)
    free = _count_free_cpus(nodes, demand, placed)
    busy = [free[name] for name in free if placed[name]]
    if level == "ok":
        text = f"{workers}; free CPUs on their nodes: {min(busy, default=0):g} or more"
        return Finding(check="capacity", level=level, text=text)
    if level == "FAIL":
        total = sum(node.cpus for node in nodes)
        text = (
            f"{workers} take {total - sum(free.values()):g} of the {total:g} CPUs; less than one "
            "is left for Ray Data, so the run would wait forever"
        )
    else:
        full = [name for name, cpus in free.items() if placed[name] and cpus < _DATA_CPUS]
        text = (
            f"{workers} leave no CPU for Ray Data on {', '.join(full)}; their data comes over the "
            "network"
        )
    fix = _suggest(nodes, demand, "give Ray more CPUs: ray start --num-cpus N")
    return Finding(check="capacity", level=level, text=text, fix=fix)


def _get_level(nodes: Sequence[Node], demand: Demand) -> Level:
    placed = _place_workers(nodes, demand)
    free = _count_free_cpus(nodes, demand, placed)
    if sum(placed.values()) < demand.num_workers or sum(free.values()) < _DATA_CPUS:
        return "FAIL"
    is_full = any(placed[name] and cpus < _DATA_CPUS for name, cpus in free.items())
    return "warning" if is_full else "ok"


def _place_workers(nodes: Sequence[Node], demand: Demand) -> dict[str, int]:
    """Count the workers on each node."""
    fits = {}
    for node in nodes:
        by_cpu = math.floor(node.cpus / demand.cpus_per_worker + 1e-6)
        fits[node.name] = min(by_cpu, math.floor(node.gpus)) if demand.use_gpu else by_cpu
    to_place, placed = demand.num_workers, {}
    for name in sorted(fits, key=lambda name: -fits[name]):
        placed[name] = min(to_place, fits[name])
        to_place -= placed[name]
    return placed


def _count_free_cpus(
    nodes: Sequence[Node], demand: Demand, placed: Mapping[str, int]
) -> dict[str, float]:
    return {node.name: node.cpus - placed[node.name] * demand.cpus_per_worker for node in nodes}


def _suggest(nodes: Sequence[Node], demand: Demand, other: str) -> str:
    """Suggest the largest configurations that pass, and another fix."""
    fixes = []
    for tenths in range(math.ceil(demand.cpus_per_worker * _TENTHS) - 1, 0, -1):
        if _get_level(nodes, replace(demand, cpus_per_worker=tenths / _TENTHS)) == "ok":
            fixes.append(f"give each worker fewer: --scale.cpus-per-worker {tenths / _TENTHS:g}")
            break
    for count in range(demand.num_workers - 1, 0, -1):
        if _get_level(nodes, replace(demand, num_workers=count)) == "ok":
            fixes.append(f"use fewer workers: --scale.num-workers {count}")
            break
    return ", or ".join([*fixes, other])
