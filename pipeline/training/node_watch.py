"""Log one line when a node leaves or joins the cluster during training.

Ray Train restarts the workers of a lost node, and waits silently if there is no capacity for all of
them; Ray's own messages about a lost node fill pages.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from pipeline.recipe import ScaleConfig
from pipeline.text import format_count
from pipeline.training.capacity import describe_shortage

_log = logging.getLogger(__name__)

_POLL_EVERY_S = 1.0
_REMIND_EVERY_S = 60.0

_PLANNED = (1, 4)
"""Ray's death reasons of a node that was stopped, or was removed as idle by the autoscaler."""


@contextmanager
def watch_nodes(scale: ScaleConfig) -> Iterator[None]:
    """Log nodes that leave or join, and whether the run has to wait for more."""
    stop = threading.Event()
    thread = threading.Thread(target=_poll_nodes, args=(scale, stop), name="nodes", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=10)


def _poll_nodes(scale: ScaleConfig, stop: threading.Event) -> None:
    try:
        before = _select_alive(_list_nodes())
        is_waiting, logged_s = False, 0.0
        while not stop.wait(_POLL_EVERY_S):
            nodes = _list_nodes()
            alive = _select_alive(nodes)
            count = format_count(len(alive), "node")
            for name in before.keys() - alive.keys():
                _log.info("%s; %s left", _describe_loss(nodes.get(name, before[name])), count)
            for name in alive.keys() - before.keys():
                _log.info("node %s joined; %s now", _format_node(alive[name]), count)
            has_changed, before = alive.keys() != before.keys(), alive
            remind = is_waiting and time.monotonic() - logged_s > _REMIND_EVERY_S
            if not has_changed and not remind:
                continue
            shortage = describe_shortage(scale)
            if shortage:
                _log.info(
                    "%s. The run waits until enough nodes have joined, and then resumes from the "
                    "last checkpoint.",
                    shortage,
                )
            elif is_waiting:
                _log.info("the cluster has capacity for all workers again")
            is_waiting, logged_s = bool(shortage), time.monotonic()
    except ray.exceptions.RayError:
        return  # Ray is shutting down, and so is the driver.


def _list_nodes() -> dict[str, dict[str, Any]]:
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return {node["NodeID"]: node for node in nodes}


def _select_alive(nodes: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: node for name, node in nodes.items() if node["Alive"]}


def _describe_loss(node: dict[str, Any]) -> str:
    if node.get("DeathReason") in _PLANNED:
        return f"node {_format_node(node)} left the cluster"
    return f"node {_format_node(node)} was lost with everything that ran on it"


def _format_node(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
