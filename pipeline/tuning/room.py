"""How many trials the cluster has room for: what a trial's workers need is counted by Train alone.

Tune sees only the process that starts a trial. Were more trials started than fit, each would hold
some of its workers and wait for the others' for ever (ray#54305).
"""

import logging
import threading
from collections.abc import Mapping

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group

from pipeline.recipe import ScaleConfig
from pipeline.training.cluster import cpus_needed
from pipeline.tuning.space import Sweep

_log = logging.getLogger(__name__)

_ENDED_WITHIN_S = 15.0
"""A trial that is stopped is gone within seconds; the next one takes longer to need the room."""

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


def release(placement_group: str) -> None:
    """Let go of what the workers of a trial held that was ended from outside; waits for nothing.

    Ray Train has an actor of its own for this, which fails for good where it finds a second Ray on
    the machine: the next trial would wait for ever for room that nobody uses. Not at once: a run
    that is yet to end would take the loss of its workers for a failure, and take room anew.
    """

    def remove() -> None:
        if ray.is_initialized():
            id_of = ray.PlacementGroupID.from_hex(placement_group)
            remove_placement_group(PlacementGroup(id_of))

    later = threading.Timer(_ENDED_WITHIN_S, remove)
    later.daemon = True
    later.start()


def room_for(scale: ScaleConfig, resources: Mapping[str, float]) -> int:
    """Count the runs of a scale that fit into the resources side by side."""
    needs = {"CPU": cpus_needed(scale)}
    if scale.use_gpu:
        needs["GPU"] = float(scale.num_workers)
    return min(int(resources.get(name, 0.0) / count + 1e-9) for name, count in needs.items())
