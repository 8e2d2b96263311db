"""Start Ray, and check that it has the CPUs and GPUs for a run."""

import logging
from contextlib import suppress
from typing import Any

import ray

from pipeline.errors import RecipeError, SetupError
from pipeline.ray_address import uses_cluster
from pipeline.ray_connection import check_environment, connect
from pipeline.recipe import Recipe, ScaleConfig
from pipeline.text import format_count

_log = logging.getLogger(__name__)

PLACEMENT_GROUP_KEY = "placement_group"
"""Key in the metrics of a checkpoint: the hex id of the workers' placement group. Code that
stops a run from outside must remove this group."""

_DATA_CPUS = 1
"""CPUs for Ray Data besides the workers; without one the workers would wait forever."""


def check_cluster(recipe: Recipe) -> None:
    """Connect to the cluster of a run, if there is one, and check its CPUs and GPUs.

    This takes a second, the other checks of a run may take minutes. Without a cluster they come
    first, because Ray takes longer to start here. A cluster that does not answer is left to them:
    they report all problems at once.

    Raises:
        RecipeError: see `start_ray`.
    """
    with suppress(SetupError):
        if uses_cluster():
            check_environment()
            connect()
            _require_capacity(recipe.scale)


def start_ray(recipe: Recipe) -> None:
    """Connect to Ray or start it on this machine, unless it is connected already.

    Raises:
        RecipeError: the only machine has too few CPUs or GPUs for the recipe.
    """
    connect(cpus=count_cpus(recipe.scale))
    if shortage := _require_capacity(recipe.scale):
        _log.info("%s\nThe run waits until enough nodes have joined.", shortage)


def count_cpus(scale: ScaleConfig) -> float:
    """Count the CPUs of a run's workers and of Ray Data."""
    return scale.num_workers * scale.cpus_per_worker + _DATA_CPUS


def required_resources(scale: ScaleConfig) -> dict[str, float]:
    """Return the resources of a run by Ray's names."""
    gpus = {"GPU": float(scale.num_workers)} if scale.use_gpu else {}
    return {"CPU": count_cpus(scale), **gpus}


def describe_shortage(scale: ScaleConfig) -> str:
    """Describe which resources the connected Ray lacks for a run; "" if it lacks none."""
    available: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    missing = [
        f"{available.get(name, 0.0):g} {name}s, the run needs {count:g}"
        for name, count in required_resources(scale).items()
        if available.get(name, 0.0) < count
    ]
    if not missing:
        return ""
    workers = format_count(scale.num_workers, "worker")
    return f"Ray has {' and '.join(missing)} ({workers}, and {_DATA_CPUS} CPU for Ray Data)"


def _require_capacity(scale: ScaleConfig) -> str:
    """Return what a cluster lacks and may still get; refuse a machine that is too small."""
    shortage = describe_shortage(scale)
    if not shortage:
        return ""
    text = (
        f"{shortage}. Use fewer workers (--scale.num-workers), give each fewer CPUs "
        "(--scale.cpus-per-worker 0.5), or give Ray more: ray start --head --num-cpus N"
    )
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    alive = [node for node in nodes if node["Alive"]]
    # A single node with CPUs is one machine, and stays that. A head without CPUs waits for nodes.
    if len(alive) == 1 and alive[0]["Resources"].get("CPU", 0) > 0:
        raise RecipeError(text)
    return text
