"""Ask all nodes at once, and take no answer for an answer once the time is over."""

import logging
import secrets
import socket
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
from urllib.parse import urlsplit

import ray
import ray.cloudpickle
from ray.autoscaler.sdk import request_resources
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline import storage
from pipeline.doctor import probe
from pipeline.doctor.facts import (
    Answer,
    Authentication,
    Clock,
    Demand,
    Gpu,
    Node,
    RoundTrip,
    Tracking,
)
from pipeline.tracking.stores import masked, sqlite_path, tracking_uri

_log = logging.getLogger(__name__)

_HEAD = "node:__internal_head__"
_CALLS_AT_ONCE = 4
_CLOCK_ROUNDS = 5
_TEST_BYTES = 2**20
_POLL_S = 1.0
# Any page that needs the token, as it changes nothing.
_GUARDED_PAGE = "/api/jobs/"


@dataclass(frozen=True, kw_only=True, slots=True)
class Probes:
    """The actors that were started, by the name of their node."""

    actors: Mapping[str, Any]
    timeout_s: float

    def ask(self, method: str, arguments: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
        """Call a method of the actors of some nodes at once.

        Args:
            method: its name.
            arguments: by node.

        Returns:
            By node: what came back, or the exception that came instead of it; TimeoutError for
            those that said nothing in time.
        """
        refs = {
            name: getattr(self.actors[name], method).remote(*given)
            for name, given in arguments.items()
        }
        ray.wait(list(refs.values()), num_returns=len(refs), timeout=self.timeout_s)
        return {name: self._result(ref) for name, ref in refs.items()}

    def _result(self, ref: Any) -> Any:  # noqa: ANN401
        try:
            # Whatever is ready is at hand; what is not was waited for already.
            return ray.get(ref, timeout=0.1)
        except ray.exceptions.GetTimeoutError:
            return TimeoutError(f"no answer in {self.timeout_s:g} s")
        except ray.exceptions.RayError as error:
            return error


@contextmanager
def travelling(module: ModuleType) -> Iterator[None]:
    """Let the code of a module travel to nodes that may not have it."""
    pickler: Any = ray.cloudpickle
    pickler.register_pickle_by_value(module)
    try:
        yield
    finally:
        pickler.unregister_pickle_by_value(module)


def nodes_of_ray() -> tuple[list[Node], dict[str, str]]:
    """List the nodes that are up, the head first, and the session folder of each."""
    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    alive = [each for each in found if each["Alive"]]
    at = Counter(each["NodeManagerAddress"] for each in alive)
    nodes, folders = [], {}
    for each in alive:
        address = each["NodeManagerAddress"]
        # Several nodes on one machine happen in tests; the address alone would not tell them apart.
        name = address if at[address] == 1 else f"{address}/{each['NodeID'][:6]}"
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
    """Ask the autoscaler for what a job needs, and wait until it is there or the time is over."""
    each = {"CPU": demand.cpus_per_worker} | ({"GPU": 1} if demand.use_gpu else {})
    request_resources(bundles=[each] * demand.num_workers)
    try:
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:
            there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
            if all(there.get(name, 0) >= n * demand.num_workers for name, n in each.items()):
                return
            time.sleep(_POLL_S)
    finally:
        request_resources(bundles=[])


@contextmanager
def probes_on(nodes: Sequence[Node], timeout_s: float) -> Iterator[Probes]:
    """Start an actor on each node; a node that cannot start one does not answer."""
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


def asked(nodes: Sequence[Node], probes: Probes, *, folders: Mapping[str, str]) -> list[Node]:
    """Have every node say what is on it."""
    answers = probes.ask("facts", {node.name: (folders[node.name],) for node in nodes})
    return [_with_answer(node, answers[node.name]) for node in nodes]


def with_clocks(nodes: Sequence[Node], probes: Probes) -> list[Node]:
    """Compare the clock of every node that answered with this process's."""
    return [
        replace(node, clock=_clock(probes, node.name)) if node.answer else node for node in nodes
    ]


def round_trip(uri: str, nodes: Sequence[Node], probes: Probes) -> RoundTrip:
    """Write a file on every node, read each on the next node, and delete them."""
    names = [node.name for node in nodes]
    folder = storage.join(uri, f"doctor-{secrets.token_hex(4)}")
    texts = {name: secrets.token_hex(_TEST_BYTES // 2) for name in names}
    files = {name: storage.join(folder, f"{index}.txt") for index, name in enumerate(names)}
    began = time.monotonic()

    def told(method: str, arguments: Mapping[str, tuple[Any, ...]]) -> dict[str, str]:
        # Without the file's name, which is another one on each node, nodes say the same.
        return {
            name: _as_text(given).replace(files[name].removeprefix(uri), "")
            for name, given in probes.ask(method, arguments).items()
        }

    wrote = told("write", {name: (files[name], texts[name]) for name in names})
    written = [name for name in names if not wrote[name]]
    # Each node reads what the one before it has written; a node alone reads its own.
    sources = dict(zip(written, written[-1:] + written[:-1], strict=True))
    read = told("read", {name: (files[at], texts[at]) for name, at in sources.items()})
    seconds = time.monotonic() - began
    removed = told("remove", {name: (files[name],) for name in written})
    # One after the other: a shared folder is one, and where it is not shared each has its own.
    removed_folder = [told("remove", {name: (folder,)})[name] for name in written]
    return RoundTrip(
        uri=uri,
        is_local=storage.is_local(uri),
        wrote=wrote,
        read=read,
        read_from=sources,
        left_over=next((e for e in [*removed.values(), *removed_folder] if e), ""),
        seconds=seconds,
    )


def tracking(uri: str, *, storage_uri: str, nodes: Sequence[Node], probes: Probes) -> Tracking:
    """Have every node ask the tracking server."""
    if not uri and not storage.is_local(storage_uri):
        return Tracking(uri="the embedded store", is_embedded=True)
    full = tracking_uri(uri, storage_uri=storage_uri)
    if sqlite_path(full) is not None:
        return Tracking(uri=f"the embedded store {full}", is_embedded=True)
    answers = probes.ask("track", {node.name: (full, probes.timeout_s) for node in nodes})
    answered = {name: given for name, given in answers.items() if isinstance(given, tuple)}
    return Tracking(
        uri=masked(full),
        is_embedded=False,
        errors={
            name: masked(given[0] if isinstance(given, tuple) else _as_text(given))
            for name, given in answers.items()
        },
        seconds=max((seconds for _, seconds in answered.values()), default=0.0),
    )


def authentication(nodes: Sequence[Node], probes: Probes, *, timeout_s: float) -> Authentication:
    """Ask the dashboard for its jobs without a token, as a stranger would."""
    # Connected already: this only gives what the first call gave.
    context = ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level=logging.WARNING)
    dashboard = context.dashboard_url or ""
    modes = probes.ask("auth_mode", {node.name: () for node in nodes})
    said = {mode for mode in modes.values() if isinstance(mode, str)}
    return Authentication(
        status=_status(f"http://{dashboard}{_GUARDED_PAGE}", timeout_s) if dashboard else None,
        mode="/".join(sorted(mode or "unset" for mode in said)),
        address=dashboard,
    )


def nobody_listens(address: str, *, timeout_s: float) -> str:
    """Say why nothing is reached at HOST:PORT; "" where something is, or no address is given.

    Ray itself tries for minutes.
    """
    host, _, port = urlsplit(f"//{address}").netloc.rpartition(":")
    if not host or not port.isdigit():
        return ""
    try:
        with socket.create_connection((host, int(port)), timeout=timeout_s):
            return ""
    except OSError as error:
        return str(error)


def answer_of(told: Mapping[str, Any]) -> Answer:
    """Read what `probe.facts` tells."""
    return Answer(**{**told, "gpus": tuple(Gpu(**gpu) for gpu in told["gpus"])})


def _with_answer(node: Node, given: Any) -> Node:  # noqa: ANN401
    if not isinstance(given, dict):
        return replace(node, error=_as_text(given))
    return replace(node, answer=answer_of(given))


def _clock(probes: Probes, name: str) -> Clock | None:
    best: Clock | None = None
    for _ in range(_CLOCK_ROUNDS):
        before = time.time()
        given = probes.ask("now", {name: ()})[name]
        after = time.time()
        if not isinstance(given, float):
            return best
        error = (after - before) / 2
        if best is None or error < best.error_s:
            best = Clock(offset_s=given - (before + after) / 2, error_s=error)
    return best


def _status(url: str, timeout_s: float) -> int | None:
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as reply:  # noqa: S310  our own URL
            status: int = reply.status
            return status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError as error:
        _log.debug("no dashboard at %s: %s", url, error)
        return None


def refused(error: Exception) -> str:
    """Say in one line why Ray does not let this process in."""
    told: BaseException = error
    while told.__cause__ is not None:
        told = told.__cause__
    # Its own text holds tracebacks of its own; the last line is what went wrong.
    lines = str(told).strip().splitlines() or [type(told).__name__]
    reason = next((line for line in reversed(lines) if "Error" in line), lines[0])
    return reason.partition(". ")[0][:300]


def _as_text(given: object) -> str:
    """Give what a node said, or what became of it, in one line."""
    if isinstance(given, ray.exceptions.RayTaskError):
        # The text of the error is the node's whole traceback; its last line says what it is.
        return str(given).strip().splitlines()[-1][:300]
    if isinstance(given, Exception):
        return f"{type(given).__name__}: {str(given).strip().partition(chr(10))[0]}"[:300]
    return str(given)
