"""Limit the number of concurrent trials to the capacity of the cluster.

Tune only sees the driver process of a trial; Ray Train allocates its workers. With more trials than
fit, each would hold some of its workers and wait forever for the others (ray#54305).
"""

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.state import get_actor
from ray.util.state.exception import RayStateApiException

from pipeline.recipe import ScaleConfig
from pipeline.training.capacity import PLACEMENT_GROUP_KEY, required_resources
from pipeline.tuning.space import Sweep

_log = logging.getLogger(__name__)

CONTROLLER_KEY = "controller"
"""Key in the metrics of a trial: the hex id of the actor that restarts its workers."""

_POLL_EVERY_S = 1.0
_TIMEOUT_S = 120
"""Ray ends a stopped trial within seconds."""

TRIAL_DRIVER_RESOURCES = {"CPU": 0, "node:__internal_head__": 0.001}
"""Resources of a trial's driver process: no CPU, because Ray Data needs a whole one."""


def count_concurrent_trials(sweep: Sweep) -> int:
    """Count the trials that the connected cluster can run at once, up to the sweep's limit.

    A cluster whose nodes have not joined yet has no capacity; then the sweep's limit counts.
    """
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    capacity = count_fitting_runs(sweep.recipe.scale, resources)
    wanted = sweep.parallel or max(capacity, 1)
    if not 0 < capacity < wanted:
        return wanted
    _log.info("the cluster has capacity for %d of %d concurrent trials", capacity, wanted)
    return capacity


def release_workers(reported: Mapping[str, Any]) -> None:
    """Free the workers of a trial that was stopped from outside, once it has ended; do not wait.

    Ray Train has an actor for this, which fails permanently if a second Ray runs on the machine:
    the next trial would wait forever for unused capacity. The workers are not freed before the
    trial's controller is dead: the controller would treat this as a failure and reallocate.

    Args:
        reported: the trial's last metrics; without PLACEMENT_GROUP_KEY it holds no workers.
    """
    if PLACEMENT_GROUP_KEY not in reported or CONTROLLER_KEY not in reported:
        return
    address = ray.get_runtime_context().gcs_address
    threading.Thread(
        target=_remove_group_after,
        args=(reported[CONTROLLER_KEY], reported[PLACEMENT_GROUP_KEY], address),
        name="release",
        daemon=True,
    ).start()


def _remove_group_after(controller: str, placement_group: str, address: str) -> None:
    deadline_s = time.monotonic() + _TIMEOUT_S
    while ray.is_initialized():
        if _is_dead(controller, address):
            group_id = ray.PlacementGroupID.from_hex(placement_group)
            remove_placement_group(PlacementGroup(group_id))
            return
        if time.monotonic() > deadline_s:
            _log.warning(
                "a stopped trial still holds its workers after %d s; if the next trial does not "
                "start, stop the sweep and resume it with --resume",
                _TIMEOUT_S,
            )
            return
        time.sleep(_POLL_EVERY_S)


def _is_dead(actor_id: str, address: str) -> bool:
    try:
        # Without the address Ray searches this machine, and fails if it finds two clusters.
        state = get_actor(actor_id, address=address)
    except (RayStateApiException, OSError):
        return False  # The dashboard is busy, or Ray is gone.
    return state is None or state.state == "DEAD"


def count_fitting_runs(scale: ScaleConfig, resources: Mapping[str, float]) -> int:
    """Count the runs of a scale that fit into the resources side by side."""
    required = required_resources(scale).items()
    return min(int(resources.get(name, 0.0) / count + 1e-9) for name, count in required)
