"""Results of the queries to a cluster, as plain values, so that the checks need no cluster."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Level = Literal["ok", "warning", "FAIL"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """The result of one check."""

    check: str
    """Name of the check."""
    level: Level
    text: str
    fix: str = ""
    """What to do about it; "" if nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """The resources that a job requests."""

    num_workers: int
    cpus_per_worker: float
    use_gpu: bool
    source: str
    """Origin of the numbers: path of a job, "flags", or a default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """A GPU as its driver reports it."""

    name: str
    memory_mib: int
    driver: str


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeFacts:
    """Software and hardware of a node, as its probe reports them."""

    python: str
    versions: Mapping[str, str]
    """By package; "" for a missing package."""
    code: str
    """Hash of this package's source files; "" if the package is missing."""
    cuda_build: str
    """CUDA version that torch was built with; "" for a CPU build."""
    gpus: tuple[Gpu, ...]
    gpus_error: str
    """Error of an installed driver; "" if none."""
    disk_free_bytes: int
    disk_total_bytes: int
    shm_total_bytes: int
    """Size of /dev/shm; 0 if it does not exist."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clock:
    """The clock of a node compared with this process's."""

    offset_s: float
    """Positive if the node is ahead."""
    error_s: float
    """Uncertainty of the offset: half of the shortest round trip."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A node as Ray lists it, with the facts of its probe."""

    node_id: str
    name: str
    """Name in all output."""
    cpus: float
    """CPUs that Ray counts."""
    gpus: float
    """GPUs that Ray counts."""
    object_store_bytes: int
    is_head: bool = False
    facts: NodeFacts | None = None
    error: str = ""
    """Why the probe did not answer."""
    clock: Clock | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StorageTrip:
    """Files written on every node and read on another one."""

    uri: str
    is_local: bool
    """Whether the URI is a path, which may be on a different disk on each node."""
    wrote: Mapping[str, str] = field(default_factory=dict)
    """Write error by node; "" for success."""
    read: Mapping[str, str] = field(default_factory=dict)
    """Read error by reading node; "" for success."""
    read_from: Mapping[str, str] = field(default_factory=dict)
    """Writing node by reading node."""
    left_over: str = ""
    """Why the files could not be deleted."""
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Tracking:
    """The tracking server as every node sees it."""

    uri: str
    """Without passwords."""
    is_embedded: bool
    """Whether it is an SQLite file instead of a server."""
    errors: Mapping[str, str] = field(default_factory=dict)
    """By node; "" for an answer."""
    seconds: float = 0.0
    """Slowest answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AllReduce:
    """An all-reduce over processes on all nodes."""

    backend: str
    nodes: tuple[str, ...]
    """Node of each process."""
    sent_bytes: int = 0
    seconds: float = 0.0
    error: str = ""
    stage: Literal["start", "reduce"] = "reduce"
    """Stage of the error."""

    @property
    def bytes_per_s(self) -> float:
        """Bandwidth of each process's link: a ring sends 2 (n - 1) / n of the bytes."""
        count = len(self.nodes)
        return 2 * (count - 1) / count * self.sent_bytes / self.seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Authentication:
    """The answer to a request without a token."""

    status: int | None
    """HTTP status; None if nothing answered."""
    mode: str
    """RAY_AUTH_MODE of the nodes; "" if unset."""
    address: str
    """Address of the dashboard."""
