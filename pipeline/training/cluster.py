"""Which Ray a run uses: the one it was submitted to, the one RAY_ADDRESS names, or its own.

Token authentication stays as the user's environment sets it.
"""

import logging
import math
import os
from typing import Any

import ray

from pipeline.errors import RecipeError
from pipeline.recipe import Recipe, ScaleConfig

_log = logging.getLogger(__name__)

_PASSED_ON = ("BSM_", "MLFLOW_", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION")
"""Variables that workers on an existing cluster get too. Keys and tokens are not among them: what
is passed on is shown in Ray's dashboard."""

_SECRET = ("TOKEN", "PASSWORD", "SECRET", "KEY")

_DATA_CPUS = 1
"""CPUs that Ray Data needs beside the workers; with none left the workers would wait for ever."""


def start_ray(recipe: Recipe) -> None:
    """Connect to Ray, or start it on this machine; does nothing where it is connected already.

    Raises:
        RecipeError: the only machine there is has too few CPUs or GPUs for the recipe.
    """
    connect(recipe.scale)
    _check_room(recipe.scale)


def connect(scale: ScaleConfig) -> None:
    """Connect to Ray as `start_ray` does, and take what is there, be it enough or not."""
    if ray.is_initialized():
        return
    # Read when Ray starts a process, so they must be there before.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # It says on each start that tokens are on, at length; the README says it once.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    arguments = _arguments(scale)
    local = arguments.get("address") == "local"
    _log.info("starting Ray on this machine" if local else "connecting to Ray")
    ray.init(**arguments)


def _arguments(scale: ScaleConfig) -> dict[str, Any]:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        # A submitted job: its own runtime environment reaches the workers.
        return quiet
    if "RAY_ADDRESS" in os.environ:
        return quiet | {"runtime_env": {"env_vars": _passed_on()}}
    # The CPUs are shares of the machine's; a laptop of two cores has room for two workers.
    cpus = max(os.cpu_count() or 1, math.ceil(scale.num_workers * scale.cpus_per_worker) + 1)
    # Without the dashboard Train V2 cannot ask for the state of its own actors.
    return quiet | {"address": "local", "include_dashboard": True, "num_cpus": cpus}


def _passed_on() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(_PASSED_ON) and not any(part in name for part in _SECRET)
    }


def _check_room(scale: ScaleConfig) -> None:
    needed = {"CPU": scale.num_workers * scale.cpus_per_worker + _DATA_CPUS}
    if scale.use_gpu:
        needed["GPU"] = float(scale.num_workers)
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    short = [
        f"{there.get(name, 0.0):g} {name}s, the run needs {count:g}"
        for name, count in needed.items()
        if there.get(name, 0.0) < count
    ]
    if not short:
        return
    text = (
        f"Ray has {' and '.join(short)} ({scale.num_workers} workers, and {_DATA_CPUS} CPU for "
        "Ray Data). Take fewer workers (--scale.num-workers), a smaller share for each "
        "(--scale.cpus-per-worker 0.5), or tell Ray of more: ray start --head --num-cpus N"
    )
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    alive = [node for node in nodes if node["Alive"]]
    # A head that works is a machine of its own. A head without CPUs waits for nodes to join.
    if len(alive) == 1 and alive[0]["Resources"].get("CPU", 0) > 0:
        raise RecipeError(text)
    _log.info("%s\nThe run waits until enough nodes have joined.", text)
