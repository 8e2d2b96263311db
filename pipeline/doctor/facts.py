"""What was found out about a cluster: plain values, so that judging them needs no cluster."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Level = Literal["ok", "warning", "FAIL"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line of what the doctor says."""

    check: str
    """What was looked at."""
    level: Level
    text: str
    """What is the case."""
    fix: str = ""
    """What to do about it; "" where nothing is to be done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """What a job asks of the cluster."""

    num_workers: int
    cpus_per_worker: float
    use_gpu: bool
    source: str
    """Who asks: a job's path, flags, or nobody."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """A graphics card as its driver reports it."""

    name: str
    memory_mib: int
    driver: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a node said of itself."""

    python: str
    versions: Mapping[str, str]
    """Of packages; "" for one that is missing."""
    code: str
    """Hash of this package's source files, "" where the package is missing."""
    cuda_build: str
    """The CUDA that torch was built with, "" for a torch without."""
    gpus: tuple[Gpu, ...]
    gpus_error: str
    """Why the driver did not answer, where a driver is there."""
    disk_free_bytes: int
    disk_total_bytes: int
    shm_total_bytes: int
    """Size of /dev/shm; 0 where there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clock:
    """A node's clock against this process's."""

    offset_s: float
    """Positive where the node is ahead."""
    error_s: float
    """Half of the shortest round trip: the offset is not known better."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A node as Ray knows it, with what it said when it was asked."""

    node_id: str
    name: str
    """How it is called in what users read."""
    cpus: float
    """Ray's CPUs of it."""
    gpus: float
    """Ray's GPUs of it."""
    object_store_bytes: int
    is_head: bool = False
    answer: Answer | None = None
    error: str = ""
    """Why it did not answer."""
    clock: Clock | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundTrip:
    """A file written on every node and read on another one."""

    uri: str
    is_local: bool
    """A path on disks, which every node may have of its own."""
    wrote: Mapping[str, str] = field(default_factory=dict)
    """Error by node; "" where it could be written."""
    read: Mapping[str, str] = field(default_factory=dict)
    """Error by the node that read what another one had written; "" where it was the same."""
    read_from: Mapping[str, str] = field(default_factory=dict)
    """Which node had written what a node read."""
    left_over: str = ""
    """Why the files could not be deleted."""
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Tracking:
    """The tracking server as every node sees it."""

    uri: str
    """Without passwords."""
    is_embedded: bool
    """An SQLite file instead of a server."""
    errors: Mapping[str, str] = field(default_factory=dict)
    """By node; "" where it answered."""
    seconds: float = 0.0
    """The slowest answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AllReduce:
    """A sum over processes on all nodes."""

    backend: str
    nodes: tuple[str, ...]
    """One name for each process."""
    sent_bytes: int = 0
    seconds: float = 0.0
    error: str = ""
    stage: Literal["start", "reduce"] = "reduce"
    """Where the error came: while processes started, or while they summed."""

    @property
    def bytes_per_s(self) -> float:
        """What each process's link carries: a ring sends 2 (n - 1) / n of the bytes."""
        count = len(self.nodes)
        return 2 * (count - 1) / count * self.sent_bytes / self.seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Authentication:
    """Whether the cluster asks who submits jobs."""

    status: int | None
    """HTTP status of a request without a token; None where nothing answered."""
    mode: str
    """RAY_AUTH_MODE of the nodes, "" where it is unset."""
    address: str
    """Where the dashboard listens."""
