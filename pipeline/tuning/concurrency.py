"""How many trials the cluster has room for: what a trial's workers need is counted by Train alone.

Tune sees only the process that starts a trial. Were more trials started than fit, each would hold
some of its workers and wait for the others' for ever (ray#54305).
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
from pipeline.training.capacity import cpus_needed
from pipeline.training.ray_workers import HELD
from pipeline.tuning.space import Sweep

_log = logging.getLogger(__name__)

CONTROLLER = "controller"
"""Among what a trial reports: the id of the actor that restarts its workers, in hex digits."""

_LOOK_EVERY_S = 1.0
_PATIENCE_S = 120
"""A trial that is stopped is gone within seconds."""

STARTER = {"CPU": 0, "node:__internal_head__": 0.001}
"""What the process that starts a trial takes: no CPU, or Ray Data would lack a part of its own."""


def trials_at_once(sweep: Sweep) -> int:
    """Count the trials that fit into the connected cluster, and say how many will run.

    A cluster whose machines are yet to join has no room at all; then the sweep's own word counts.
    """
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    room = room_for(sweep.recipe.scale, there)
    wanted = sweep.parallel or max(room, 1)
    count = min(wanted, room) if room else wanted
    if count < wanted:
        _log.info("the cluster has room for %d of the %d trials wanted at once", room, wanted)
    return count


def release(reported: Mapping[str, Any]) -> None:
    """Let go of what a trial held that was ended from outside, once it has ended; does not wait.

    Ray Train has an actor of its own for this, which fails for good where it finds a second Ray on
    the machine: the next trial would wait for ever for room that nobody uses. Before its controller
    is dead nothing is taken from a trial: it would call that a failure, and take room anew.

    Args:
        reported: what the trial reported last; without HELD in it there is nothing to let go of.
    """
    if HELD not in reported or CONTROLLER not in reported:
        return
    address = ray.get_runtime_context().gcs_address
    threading.Thread(
        target=_remove_after,
        args=(reported[CONTROLLER], reported[HELD], address),
        name="release",
        daemon=True,
    ).start()


def _remove_after(controller: str, placement_group: str, address: str) -> None:
    ends_s = time.monotonic() + _PATIENCE_S
    while ray.is_initialized():
        if _is_dead(controller, address):
            id_of = ray.PlacementGroupID.from_hex(placement_group)
            remove_placement_group(PlacementGroup(id_of))
            return
        if time.monotonic() > ends_s:
            _log.warning(
                "a stopped trial still holds its workers after %d s; when the next one does not "
                "start, stop the sweep and go on with --resume",
                _PATIENCE_S,
            )
            return
        time.sleep(_LOOK_EVERY_S)


def _is_dead(actor_id: str, address: str) -> bool:
    try:
        # With the address: without, Ray looks for a Ray on this machine, and takes none of two.
        state = get_actor(actor_id, address=address)
    except (RayStateApiException, OSError):
        return False  # The dashboard is busy, or gone with Ray.
    return state is None or state.state == "DEAD"


def room_for(scale: ScaleConfig, resources: Mapping[str, float]) -> int:
    """Count the runs of a scale that fit into the resources side by side."""
    needs = {"CPU": cpus_needed(scale)}
    if scale.use_gpu:
        needs["GPU"] = float(scale.num_workers)
    return min(int(resources.get(name, 0.0) / count + 1e-9) for name, count in needs.items())
