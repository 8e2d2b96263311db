"""Find what runs have left behind on a cluster that lives on."""

import json
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import psutil

from pipeline.drill.process_watch import list_processes, list_zombies
from pipeline.drill.tracking_server import TrackingServer
from pipeline.drill.two_nodes import TwoNodes

_SETTLE_S = 60.0
"""Ray takes a moment to end what belonged to a job."""
_OF_RAY_DATA = {"_AutoscalingCoordinatorActor", "_StatsActor", "_UsageCollectionActor"}
"""Actors that Ray Data starts once in a cluster, for all jobs."""


def find_leaks(
    nodes: TwoNodes, tracking: TrackingServer, *, files: Callable[[], set[str]], runs: int
) -> list[str]:
    """Describe what is left after the last job on a cluster; wait up to a minute for its end.

    Args:
        nodes: the cluster.
        tracking: the server of all runs.
        files: returns the names of the temporary files that were not there before the first job.
        runs: number of runs that have finished.
    """
    end_s = time.monotonic() + _SETTLE_S
    while True:
        found = [
            *_find_in_ray(nodes),
            *_find_unfinished(tracking, runs),
            *(f"temporary file {name}" for name in sorted(files())),
            *_find_spilled(nodes),
            *(f"zombie process {_name(each)}" for each in list_zombies()),
        ]
        if not found or time.monotonic() > end_s:
            return found
        time.sleep(2)


def find_processes() -> list[str]:
    """Describe the processes that are left once everything was stopped."""
    end_s = time.monotonic() + _SETTLE_S
    while True:
        found = [f"process {_name(each)}" for each in list_processes()]
        if not found or time.monotonic() > end_s:
            return found
        time.sleep(2)


def _find_in_ray(nodes: TwoNodes) -> Iterator[str]:
    alive = [each for each in _ask_ray(nodes, "actors") if each["state"] != "DEAD"]
    counts = Counter(actor["class_name"] for actor in alive)
    for actor in alive:
        name = actor["class_name"]
        if name not in _OF_RAY_DATA or counts[name] > 1:
            yield f"actor {name} ({actor['state']}, job {actor['job_id']})"
    for group in _ask_ray(nodes, "placement_groups"):
        if group["state"] != "REMOVED":
            yield f"placement group {group['placement_group_id']} ({group['state']})"


def _ask_ray(nodes: TwoNodes, resource: str) -> list[dict[str, Any]]:
    request = urllib.request.Request(  # noqa: S310  http
        f"{nodes.dashboard}/api/v0/{resource}?limit=10000&detail=1",
        headers={"Authorization": f"Bearer {nodes.environment['RAY_AUTH_TOKEN']}"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        rows: list[dict[str, Any]] = json.load(answer)["data"]["result"]["result"]
    return rows


def _find_unfinished(tracking: TrackingServer, runs: int) -> Iterator[str]:
    counts = Counter(str(status) for (status,) in tracking.query("select status from runs"))
    if counts != {"FINISHED": runs}:
        yield f"MLflow has runs {dict(counts)}, not {runs} that are finished"


def _find_spilled(nodes: TwoNodes) -> Iterator[str]:
    for disk in sorted(nodes.folder.glob("disk-*")):
        spilled = [path for path in disk.glob("session_*/*spill*/**/*") if path.is_file()]
        if spilled:
            yield f"{len(spilled)} spilled objects in {disk.name}"


def _name(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline())[:80] or process.name()}"
    except psutil.Error:
        return str(process.pid)
