"""Connect to Ray: the cluster of a submitted job, the one in RAY_ADDRESS, or a local one.

A Ray that happens to run on this machine is never used: the files of a killed Ray look like a
running one, and connecting to it takes minutes to fail. Token authentication is left to the
environment.
"""

import logging
import math
import os
from typing import Any

import ray

_log = logging.getLogger(__name__)

_FORWARDED = ("BSM_", "MLFLOW_", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION")
"""Prefixes of the variables forwarded to workers of an existing cluster. Keys and tokens are never
forwarded: Ray's dashboard shows these variables."""

_SECRET = ("TOKEN", "PASSWORD", "SECRET", "KEY")


def connect(*, cpus: float = 0) -> None:
    """Connect to Ray, or start it on this machine, unless already connected.

    Args:
        cpus: least number of CPUs of a local Ray, which may exceed those of the machine; an
            existing cluster is used as it is.
    """
    if ray.is_initialized():
        return
    # Ray reads these when it starts a process.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # On every start, this logger explains at length that tokens are on.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    arguments = _arguments(cpus)
    local = arguments.get("address") == "local"
    _log.info("starting Ray on this machine" if local else "connecting to Ray")
    ray.init(**arguments)


def _arguments(cpus: float) -> dict[str, Any]:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        # A submitted job: its runtime environment already reaches the workers.
        return quiet
    if "RAY_ADDRESS" in os.environ:
        return quiet | {"runtime_env": {"env_vars": _forwarded_env()}}
    # More CPUs than the machine has are allowed, so two workers fit on a laptop with two cores.
    count = max(os.cpu_count() or 1, math.ceil(cpus))
    # Train V2 needs the dashboard to query the state of its actors.
    return quiet | {"address": "local", "include_dashboard": True, "num_cpus": count}


def _forwarded_env() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(_FORWARDED) and not any(part in name for part in _SECRET)
    }
