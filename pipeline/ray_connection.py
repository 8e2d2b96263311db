"""Which Ray a program uses: the one it was submitted to, the one RAY_ADDRESS names, or its own.

Never one that only happens to run on this machine: what a Ray leaves behind when it is killed looks
like one that runs, and is waited for for minutes. Token authentication stays as the user's
environment sets it.
"""

import logging
import math
import os
from typing import Any

import ray

_log = logging.getLogger(__name__)

_PASSED_ON = ("BSM_", "MLFLOW_", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION")
"""Variables that workers on an existing cluster get too. Keys and tokens are not among them: what
is passed on is shown in Ray's dashboard."""

_SECRET = ("TOKEN", "PASSWORD", "SECRET", "KEY")


def connect(*, cpus: float = 0) -> None:
    """Connect to Ray, or start it on this machine; does nothing where it is connected already.

    Args:
        cpus: shares of this machine's CPUs that a Ray of its own must have; a Ray that is there
            already is taken as it is, be it enough or not.
    """
    if ray.is_initialized():
        return
    # Read when Ray starts a process, so they must be there before.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # It says on each start that tokens are on, at length; the README says it once.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    arguments = _arguments(cpus)
    local = arguments.get("address") == "local"
    _log.info("starting Ray on this machine" if local else "connecting to Ray")
    ray.init(**arguments)


def _arguments(cpus: float) -> dict[str, Any]:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        # A submitted job: its own runtime environment reaches the workers.
        return quiet
    if "RAY_ADDRESS" in os.environ:
        return quiet | {"runtime_env": {"env_vars": _passed_on()}}
    # The CPUs are shares of the machine's; a laptop of two cores has room for two workers.
    count = max(os.cpu_count() or 1, math.ceil(cpus))
    # Without the dashboard Train V2 cannot ask for the state of its own actors.
    return quiet | {"address": "local", "include_dashboard": True, "num_cpus": count}


def _passed_on() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(_PASSED_ON) and not any(part in name for part in _SECRET)
    }
