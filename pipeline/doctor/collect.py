"""Query all nodes in parallel; after the timeout, a silent node counts as failed."""

import logging
import secrets
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import ray
import ray.cloudpickle
from ray.autoscaler.sdk import request_resources
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline import storage
from pipeline.doctor import probe
from pipeline.doctor.facts import (
    Authentication,
    Clock,
    Demand,
    Gpu,
    Node,
    NodeFacts,
    StorageTrip,
    Tracking,
)
from pipeline.tracking.stores import redact, resolve_tracking_uri, sqlite_path

_log = logging.getLogger(__name__)

_HEAD = "node:__internal_head__"
_CALLS_AT_ONCE = 4
_CLOCK_ROUNDS = 5
_TEST_BYTES = 2**20
_POLL_S = 1.0
# A read-only page that needs the token.
_GUARDED_PAGE = "/api/jobs/"


@dataclass(frozen=True, kw_only=True, slots=True)
class Probes:
    """The probe actors by node name."""

    actors: Mapping[str, Any]
    timeout_s: float

    def call(self, method: str, arguments: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
        """Call a method of several actors in parallel.

        Args:
            method: name of the method.
            arguments: by node.

        Returns:
            By node: the result, or the exception; TimeoutError for a silent node.
        """
        refs = {
            name: getattr(self.actors[name], method).remote(*args)
            for name, args in arguments.items()
        }
        ray.wait(list(refs.values()), num_returns=len(refs), timeout=self.timeout_s)
        return {name: self._get(ref) for name, ref in refs.items()}

    def _get(self, ref: Any) -> Any:  # noqa: ANN401
        try:
            # ray.wait has already waited: a result is ready, or it is too late.
            return ray.get(ref, timeout=0.1)
        except ray.exceptions.GetTimeoutError:
            return TimeoutError(f"no answer in {self.timeout_s:g} s")
        except ray.exceptions.RayError as error:
            return error


@contextmanager
def pickle_by_value(module: ModuleType) -> Iterator[None]:
    """Send the code of a module to nodes that may not have it."""
    pickler: Any = ray.cloudpickle
    pickler.register_pickle_by_value(module)
    try:
        yield
    finally:
        pickler.unregister_pickle_by_value(module)


def list_nodes() -> tuple[list[Node], dict[str, str]]:
    """List the nodes that are alive, the head first, and the session folder of each."""
    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    alive = [each for each in found if each["Alive"]]
    nodes_at = Counter(each["NodeManagerAddress"] for each in alive)
    nodes, folders = [], {}
    for each in alive:
        address = each["NodeManagerAddress"]
        # In tests, several nodes share the address of one machine.
        name = address if nodes_at[address] == 1 else f"{address}/{each['NodeID'][:6]}"
        resources = each["Resources"]
        nodes.append(
            Node(
                node_id=each["NodeID"],
                name=name,
                cpus=resources.get("CPU", 0.0),
                gpus=resources.get("GPU", 0.0),
                object_store_bytes=int(resources.get("object_store_memory", 0)),
                is_head=_HEAD in resources,
            )
        )
        folders[name] = str(Path(each["ObjectStoreSocketName"]).parent)
    return sorted(nodes, key=lambda node: (not node.is_head, node.name)), folders


def wait_for_nodes(demand: Demand, *, wait_s: float) -> None:
    """Request the resources of a job from the autoscaler, and wait for them until the timeout."""
    each = {"CPU": demand.cpus_per_worker} | ({"GPU": 1} if demand.use_gpu else {})
    request_resources(bundles=[each] * demand.num_workers)
    try:
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:
            available: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
            if all(available.get(name, 0) >= n * demand.num_workers for name, n in each.items()):
                return
            time.sleep(_POLL_S)
    finally:
        request_resources(bundles=[])


@contextmanager
def start_probes(nodes: Sequence[Node], timeout_s: float) -> Iterator[Probes]:
    """Start a probe on each node; a node that cannot start one stays silent."""
    remote: Any = ray.remote(probe.NodeProbe)
    actors = {
        node.name: remote.options(
            num_cpus=0,
            max_concurrency=_CALLS_AT_ONCE,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False),
        ).remote()
        for node in nodes
    }
    try:
        yield Probes(actors=actors, timeout_s=timeout_s)
    finally:
        for actor in actors.values():
            ray.kill(actor)


def query_facts(nodes: Sequence[Node], probes: Probes, *, folders: Mapping[str, str]) -> list[Node]:
    """Query the facts of every node."""
    replies = probes.call("facts", {node.name: (folders[node.name],) for node in nodes})
    return [
        replace(node, facts=parse_facts(reply))
        if isinstance(reply := replies[node.name], dict)
        else replace(node, error=_as_text(reply))
        for node in nodes
    ]


def measure_clocks(nodes: Sequence[Node], probes: Probes) -> list[Node]:
    """Compare the clock of every node that answers with this process's."""
    return [
        replace(node, clock=_measure_clock(probes, node.name)) if node.facts else node
        for node in nodes
    ]


def try_storage(uri: str, nodes: Sequence[Node], probes: Probes) -> StorageTrip:
    """Write a file on every node, read it on the next node, and delete all files."""
    names = [node.name for node in nodes]
    folder = storage.join(uri, f"doctor-{secrets.token_hex(4)}")
    texts = {name: secrets.token_hex(_TEST_BYTES // 2) for name in names}
    files = {name: storage.join(folder, f"{index}.txt") for index, name in enumerate(names)}
    began = time.monotonic()

    def call(method: str, arguments: Mapping[str, tuple[Any, ...]]) -> dict[str, str]:
        # Remove the file's name, so that the same error reads the same on all nodes.
        return {
            name: _as_text(reply).replace(files[name].removeprefix(uri), "")
            for name, reply in probes.call(method, arguments).items()
        }

    wrote = call("write", {name: (files[name], texts[name]) for name in names})
    written = [name for name in names if not wrote[name]]
    # Each node reads the file of the node before it; a single node reads its own.
    sources = dict(zip(written, written[-1:] + written[:-1], strict=True))
    read = call("read", {name: (files[source], texts[source]) for name, source in sources.items()})
    seconds = time.monotonic() - began
    removed = call("remove", {name: (files[name],) for name in written})
    # One node after the other: the folder may be shared or not.
    removed_folder = [call("remove", {name: (folder,)})[name] for name in written]
    return StorageTrip(
        uri=uri,
        is_local=storage.is_local(uri),
        wrote=wrote,
        read=read,
        read_from=sources,
        left_over=next((e for e in [*removed.values(), *removed_folder] if e), ""),
        seconds=seconds,
    )


def try_tracking(uri: str, *, storage_uri: str, nodes: Sequence[Node], probes: Probes) -> Tracking:
    """Query the tracking server from every node."""
    if not uri and not storage.is_local(storage_uri):
        return Tracking(uri="the embedded store", is_embedded=True)
    full = resolve_tracking_uri(uri, storage_uri=storage_uri)
    if sqlite_path(full) is not None:
        return Tracking(uri=f"the embedded store {full}", is_embedded=True)
    replies = probes.call("track", {node.name: (full, probes.timeout_s) for node in nodes})
    return Tracking(
        uri=redact(full),
        is_embedded=False,
        errors={
            name: redact(reply[0] if isinstance(reply, tuple) else _as_text(reply))
            for name, reply in replies.items()
        },
        seconds=max((r[1] for r in replies.values() if isinstance(r, tuple)), default=0.0),
    )


def try_authentication(
    nodes: Sequence[Node], probes: Probes, *, timeout_s: float
) -> Authentication:
    """Request the jobs page of the dashboard without a token."""
    # Already connected: this only returns the context of the first call.
    context = ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level=logging.WARNING)
    dashboard = context.dashboard_url or ""
    modes = probes.call("auth_mode", {node.name: () for node in nodes})
    answered = {mode for mode in modes.values() if isinstance(mode, str)}
    return Authentication(
        status=_get_status(f"http://{dashboard}{_GUARDED_PAGE}", timeout_s) if dashboard else None,
        mode="/".join(sorted(mode or "unset" for mode in answered)),
        address=dashboard,
    )


def parse_facts(collected: Mapping[str, Any]) -> NodeFacts:
    """Parse the result of `probe.collect_facts`."""
    return NodeFacts(**{**collected, "gpus": tuple(Gpu(**gpu) for gpu in collected["gpus"])})


def _measure_clock(probes: Probes, name: str) -> Clock | None:
    best: Clock | None = None
    for _ in range(_CLOCK_ROUNDS):
        before = time.time()
        node_time = probes.call("now", {name: ()})[name]
        after = time.time()
        if not isinstance(node_time, float):
            return best
        error = (after - before) / 2
        if best is None or error < best.error_s:
            best = Clock(offset_s=node_time - (before + after) / 2, error_s=error)
    return best


def _get_status(url: str, timeout_s: float) -> int | None:
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as reply:  # noqa: S310  our own URL
            status: int = reply.status
            return status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError as error:
        _log.debug("no dashboard at %s: %s", url, error)
        return None


def _as_text(reply: object) -> str:
    """Format a reply or an exception in one line."""
    if isinstance(reply, ray.exceptions.RayTaskError):
        # The text is the node's whole traceback; its last line is the error.
        return str(reply).strip().splitlines()[-1][:300]
    if isinstance(reply, Exception):
        return f"{type(reply).__name__}: {str(reply).strip().partition(chr(10))[0]}"[:300]
    return str(reply)
