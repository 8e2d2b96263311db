"""Whether Ray has room for a run, before anything waits for it."""

import logging
from typing import Any

import ray

from pipeline.errors import RecipeError
from pipeline.ray_connection import connect
from pipeline.recipe import Recipe, ScaleConfig

_log = logging.getLogger(__name__)

_DATA_CPUS = 1
"""CPUs that Ray Data needs beside the workers; with none left the workers would wait for ever."""


def start_ray(recipe: Recipe) -> None:
    """Connect to Ray, or start it on this machine; does nothing where it is connected already.

    Raises:
        RecipeError: the only machine there is has too few CPUs or GPUs for the recipe.
    """
    connect(cpus=cpus_needed(recipe.scale))
    _check_room(recipe.scale)


def cpus_needed(scale: ScaleConfig) -> float:
    """Count the CPUs of a run's workers and of Ray Data."""
    return scale.num_workers * scale.cpus_per_worker + _DATA_CPUS


def shortage(scale: ScaleConfig) -> str:
    """Say what Ray has and what a run needs, "" where that is there."""
    needed = {"CPU": cpus_needed(scale)}
    if scale.use_gpu:
        needed["GPU"] = float(scale.num_workers)
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    short = [
        f"{there.get(name, 0.0):g} {name}s, the run needs {count:g}"
        for name, count in needed.items()
        if there.get(name, 0.0) < count
    ]
    if not short:
        return ""
    return (
        f"Ray has {' and '.join(short)} ({scale.num_workers} workers, and {_DATA_CPUS} CPU for "
        "Ray Data)"
    )


def _check_room(scale: ScaleConfig) -> None:
    short = shortage(scale)
    if not short:
        return
    text = (
        f"{short}. Take fewer workers (--scale.num-workers), a smaller share for each "
        "(--scale.cpus-per-worker 0.5), or tell Ray of more: ray start --head --num-cpus N"
    )
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    alive = [node for node in nodes if node["Alive"]]
    # A head that works is a machine of its own. A head without CPUs waits for nodes to join.
    if len(alive) == 1 and alive[0]["Resources"].get("CPU", 0) > 0:
        raise RecipeError(text)
    _log.info("%s\nThe run waits until enough nodes have joined.", text)
