"""What a user reads when nodes of the cluster leave and join while a run trains.

Workers that a lost node takes with it are started again by Ray Train, and wait without a word where
there is no room for all of them; Ray itself tells of the node in pages. Here it is a line.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from pipeline.recipe import ScaleConfig
from pipeline.training.capacity import shortage

_log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0
_REMIND_EVERY_S = 60.0

_ON_PURPOSE = (1, 4)
"""Ray's numbers for a node that was stopped, and for one that the autoscaler let go idle."""


@contextmanager
def watched_nodes(scale: ScaleConfig) -> Iterator[None]:
    """Log which nodes leave and join, and what the run does then."""
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(scale, over), name="nodes", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=10)


def _watch(scale: ScaleConfig, over: threading.Event) -> None:
    try:
        there = _alive(_nodes())
        waits, told_s = False, 0.0
        while not over.wait(_LOOK_EVERY_S):
            nodes = _nodes()
            now = _alive(nodes)
            for name in there.keys() - now.keys():
                _log.info("%s; %s left", _leaving(nodes.get(name, there[name])), _count(len(now)))
            for name in now.keys() - there.keys():
                _log.info("node %s has joined: %s now", _named(now[name]), _count(len(now)))
            changed, there = now.keys() != there.keys(), now
            if not changed and not (waits and time.monotonic() - told_s > _REMIND_EVERY_S):
                continue
            short = shortage(scale)
            if short:
                _log.info(
                    "%s. The run waits until enough nodes have joined, and then goes on by itself "
                    "from the last checkpoint.",
                    short,
                )
            elif waits:
                _log.info("there is room for all workers again")
            waits, told_s = bool(short), time.monotonic()
    except ray.exceptions.RayError:
        return  # Ray is going down, and the driver with it.


def _nodes() -> dict[str, dict[str, Any]]:
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return {node["NodeID"]: node for node in nodes}


def _alive(nodes: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: node for name, node in nodes.items() if node["Alive"]}


def _leaving(node: dict[str, Any]) -> str:
    if node.get("DeathReason") in _ON_PURPOSE:
        return f"node {_named(node)} has left the cluster"
    return f"node {_named(node)} was lost, and all that ran on it"


def _named(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def _count(nodes: int) -> str:
    return "1 node" if nodes == 1 else f"{nodes} nodes"
