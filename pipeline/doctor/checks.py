"""Turn the facts about a cluster into findings, one for each check, with a fix.

Nothing here queries a cluster.
"""

from collections.abc import Mapping, Sequence

from pipeline.doctor.facts import (
    AllReduce,
    Authentication,
    Finding,
    Node,
    NodeFacts,
    StorageTrip,
    Tracking,
)
from pipeline.errors import SetupError
from pipeline.text import format_count, format_names

_GIB = 2**30
_SKEW_WARNING_S = 1.0
# Object stores reject requests signed minutes off; for some, five minutes are too many.
_SKEW_LIMIT_S = 300.0
_DISK_WARNING_BYTES = 20 * _GIB
# Ray stops writing objects to a disk that is fuller than this.
_DISK_FULLEST = 0.95
_SLOW_BYTES_PER_S = 0.1e9
# The float32 gradients of a model of 45 M parameters, summed in every step.
_GRADIENT_BYTES = 4 * 45_000_000
_REFUSED = (401, 403)
_MAX_NAMES = 4
_SHM = "/dev/shm"  # noqa: S108  named, not written to
_NO_NODES = "see the nodes above"


def report_no_ray(error: SetupError) -> Finding:
    """Report that this process cannot connect to Ray."""
    return _fail("ray", error.problem, error.fix)


def check_nodes(nodes: Sequence[Node]) -> Finding:
    """Check that every node answers."""
    silent = {node.name: node.error for node in nodes if node.facts is None}
    if silent:
        return _fail(
            "nodes",
            f"{len(silent)} of {format_count(len(nodes), 'node')} did not answer: "
            f"{_group_by_text(silent)}",
            "check the machine (is it up, is memory free, are Python, Ray and this package "
            "installed?), or remove it from the cluster with `ray stop` on it",
        )
    return _ok(
        "nodes",
        f"{format_count(len(nodes), 'node')}: {_names([_describe(node) for node in nodes])}",
    )


def check_versions(nodes: Sequence[Node], *, expected: NodeFacts) -> Finding:
    """Check that all nodes run the same software as this process."""
    facts = _facts_by_name(nodes)
    fix = "run one image, built from requirements.lock (cluster/Dockerfile), on every node"
    missing = [name for name, each in facts.items() if not each.code]
    if missing:
        return _fail("versions", f"this package is missing on {_names(missing)}", fix)
    here = _versions(expected)
    different = [
        f"{what} {_versions(each).get(what) or 'missing'} on {name}, {version} here"
        for what, version in here.items()
        for name, each in facts.items()
        if _versions(each).get(what, "") != version
    ]
    if different:
        return _fail("versions", f"not the same everywhere: {_names(different)}", fix)
    main = ", ".join(f"{what} {here[what]}" for what in ("python", "ray", "torch", "mlflow"))
    return _ok("versions", f"{main}, code {expected.code} on all nodes that answer")


def check_gpus(nodes: Sequence[Node], *, use_gpu: bool) -> Finding:
    """Check that the GPUs that Ray counts exist, are alike, and work with torch."""
    facts = _facts_by_name(nodes)
    failure = _find_gpu_failure(nodes, facts, use_gpu=use_gpu)
    if failure:
        return failure
    gpus = [gpu for each in facts.values() for gpu in each.gpus]
    if not gpus:
        return _ok("GPUs", "none: a CPU-only cluster")
    kinds = sorted({f"{gpu.name} ({gpu.memory_mib / 1024:.0f} GiB)" for gpu in gpus})
    drivers = sorted({gpu.driver for gpu in gpus})
    found = f"{len(gpus)}: {' and '.join(kinds)}, driver {' and '.join(drivers)}"
    counted = sum(node.gpus for node in nodes if node.facts)
    if counted < len(gpus):
        return _warning(
            "GPUs", f"{found}; Ray counts {counted:g}", "to use all: ray start --num-gpus N"
        )
    if len(kinds) > 1 or len(drivers) > 1:
        return _warning(
            "GPUs", f"{found}: not alike", "every step waits for the slowest; use nodes of one kind"
        )
    return _ok("GPUs", found)


def _find_gpu_failure(
    nodes: Sequence[Node], facts: Mapping[str, NodeFacts], *, use_gpu: bool
) -> Finding | None:
    broken = {name: each.gpus_error for name, each in facts.items() if each.gpus_error}
    if broken:
        return _fail("GPUs", _group_by_text(broken), "restart the driver or the machine")
    missing = {
        node.name: f"Ray counts {node.gpus:g}, the driver {len(node.facts.gpus)}"
        for node in nodes
        if node.facts and node.gpus > len(node.facts.gpus)
    }
    if missing:
        return _fail(
            "GPUs",
            _group_by_text(missing),
            "give the container its GPUs (docker run --gpus all; nvidia.com/gpu in a Pod's "
            "limits), or start Ray with the actual number: ray start --num-gpus N",
        )
    cpu_builds = [name for name, each in facts.items() if each.gpus and not each.cuda_build]
    if cpu_builds:
        return _fail(
            "GPUs",
            f"torch is built without CUDA on {_names(cpu_builds)}",
            "install the torch of requirements.lock from an index with CUDA builds",
        )
    if use_gpu and not any(each.gpus for each in facts.values()):
        return _fail(
            "GPUs",
            "none, and the job trains on GPUs",
            "add nodes with GPUs (--wait-s 900 requests them from an autoscaler), or train on "
            "CPUs: --scale.no-use-gpu",
        )
    return None


def check_authentication(found: Authentication, *, node_count: int) -> Finding:
    """Check that requests without a token are refused."""
    if found.status in _REFUSED:
        return _ok("authentication", f"{found.address} refuses requests without a token")
    if found.status is None and found.mode == "token":
        return _ok("authentication", "RAY_AUTH_MODE=token on all nodes, no dashboard")
    is_private = node_count == 1 and found.address.startswith(("127.", "localhost", "[::1]"))
    return Finding(
        check="authentication",
        level="warning" if is_private else "FAIL",
        text=f"{found.address or 'the cluster'} requires no token (RAY_AUTH_MODE is "
        f"{found.mode or 'unknown'}): anyone who reaches it can run code here",
        fix="before Ray starts, on every node: export RAY_AUTH_MODE=token, with the same token, "
        "made by `ray get-auth-token --generate`",
    )


def check_clocks(nodes: Sequence[Node]) -> Finding:
    """Check that the clocks of all nodes agree."""
    clocks = {node.name: node.clock for node in nodes if node.clock}
    if not clocks:
        return _warning("clocks", "no node reported its time", _NO_NODES)
    first = min(clocks, key=lambda name: clocks[name].offset_s)
    last = max(clocks, key=lambda name: clocks[name].offset_s)
    spread = clocks[last].offset_s - clocks[first].offset_s
    # Clock uncertainty is resolved in the nodes' favor.
    certain = max(0.0, spread - clocks[first].error_s - clocks[last].error_s)
    if certain <= _SKEW_WARNING_S:
        error_s = max(clock.error_s for clock in clocks.values())
        return _ok("clocks", f"within {max(spread, error_s) * 1000:.1f} ms of each other")
    return Finding(
        check="clocks",
        level="FAIL" if certain > _SKEW_LIMIT_S else "warning",
        text=f"{last} is {certain:.1f} s ahead of {first}: times in logs and runs are wrong"
        + (", and object stores refuse its requests" if certain > _SKEW_LIMIT_S else ""),
        fix="synchronize the clocks by NTP on every node: timedatectl set-ntp true",
    )


def check_disk(nodes: Sequence[Node]) -> Finding:
    """Check the free space of the disks that Ray writes to."""
    facts = _facts_by_name(nodes)
    full = {
        name: f"{1 - each.disk_free_bytes / each.disk_total_bytes:.0%} full"
        for name, each in facts.items()
        if each.disk_free_bytes < (1 - _DISK_FULLEST) * each.disk_total_bytes
    }
    fix = "free some space, or start Ray on a larger disk: ray start --temp-dir PATH"
    if full:
        return _fail("disk", f"Ray's disk is full: {_group_by_text(full)}", fix)
    if not facts:
        return _warning("disk", "no node reported its free space", _NO_NODES)
    least = min(facts, key=lambda name: facts[name].disk_free_bytes)
    free_bytes = facts[least].disk_free_bytes
    found = f"{free_bytes / _GIB:.0f} GiB free on Ray's disk on {least}"
    if free_bytes < _DISK_WARNING_BYTES:
        return _warning("disk", found, fix)
    return _ok("disk", f"{found}, the least of all nodes")


def check_shared_memory(nodes: Sequence[Node]) -> Finding:
    """Check that the object store fits into /dev/shm."""
    known = [node for node in nodes if node.facts]
    small = {
        node.name: f"{_gib(node.facts.shm_total_bytes)} for an object store of "
        f"{_gib(node.object_store_bytes)}"
        for node in known
        if node.facts and node.facts.shm_total_bytes < node.object_store_bytes
    }
    if small:
        return _warning(
            "shared memory",
            f"{_SHM} is too small, so Ray keeps objects on disk: {_group_by_text(small)}",
            "give the container more (docker run --shm-size 32g; in a Pod, an emptyDir with "
            "medium: Memory at /dev/shm), or Ray less: ray start --object-store-memory BYTES",
        )
    if not known:
        return _warning("shared memory", "no node reported its size", _NO_NODES)
    least = min(node.object_store_bytes for node in known)
    return _ok("shared memory", f"{_SHM} holds the object stores ({_gib(least)} or more)")


def check_storage(trip: StorageTrip, *, node_count: int) -> Finding:
    """Check that every node writes where the others read."""
    unwritten = {name: error for name, error in trip.wrote.items() if error}
    if unwritten:
        return _fail(
            "storage",
            f"{trip.uri} cannot be written on {len(unwritten)} of "
            f"{format_count(node_count, 'node')}: {_group_by_text(unwritten)}",
            "create the folder and let the user that runs Ray write to it, or use another one: "
            "--storage s3://BUCKET/runs"
            if trip.is_local
            else "check AWS_ENDPOINT_URL and that it is up, the bucket's name and permissions, and "
            "the credentials or the role of every node",
        )
    unread = {name: error for name, error in trip.read.items() if error}
    apart = [name for name, error in unread.items() if error.startswith("FileNotFoundError")]
    if apart and trip.is_local:
        name = apart[0]
        return _fail(
            "storage",
            f"{trip.uri} is not shared: the file of {trip.read_from[name]} is missing on {name}",
            "mount one shared folder (NFS, a ReadWriteMany volume) at this path on every node, or "
            "use an object store: --storage s3://BUCKET/runs",
        )
    if unread:
        return _fail(
            "storage",
            f"{trip.uri} cannot be read back: {_group_by_text(unread)}",
            "let every node read there, and use a store with read-after-write consistency",
        )
    if trip.left_over:
        return _warning("storage", f"not deleted: {trip.left_over}", "allow deletes, too")
    how = (
        f"written on each of {node_count} nodes, read on another one"
        if node_count > 1
        else "written and read"
    )
    return _ok("storage", f"{trip.uri}: {how}, deleted, in {trip.seconds:.1f} s")


def skip_storage() -> Finding:
    """Report that no storage is named."""
    return _warning(
        "storage",
        "not checked: a submitted job has no folder of its own to write to",
        "name an absolute path or a URI: --storage s3://BUCKET/runs",
    )


def check_tracking(found: Tracking, *, storage: StorageTrip | None, node_count: int) -> Finding:
    """Check that the workers can log."""
    if found.is_embedded:
        return _check_embedded_tracking(found, storage=storage, node_count=node_count)
    failed = {name: error for name, error in found.errors.items() if error}
    if failed:
        return _fail(
            "tracking",
            f"{found.uri} does not answer on {len(failed)} of {format_count(node_count, 'node')}: "
            f"{_group_by_text(failed)}",
            "start the server (cluster/README.md), open its port to the nodes, list them in its "
            "--allowed-hosts, or correct --tracking-uri",
        )
    return _ok("tracking", f"{found.uri} answers on every node, in {found.seconds:.1f} s at most")


def _check_embedded_tracking(
    found: Tracking, *, storage: StorageTrip | None, node_count: int
) -> Finding:
    fix = (
        "start an MLflow server that every node reaches (cluster/README.md) and name it: "
        "--tracking-uri http://HOST:5000"
    )
    is_inside = storage is not None and storage.uri in found.uri
    if storage and is_inside and any(storage.wrote.values()):
        return _fail("tracking", f"{found.uri} is in a folder that cannot be written", fix)
    if node_count == 1:
        return _ok("tracking", f"{found.uri}, on this machine")
    if storage and is_inside and not any(storage.read.values()):
        return _warning("tracking", f"{found.uri}: SQLite supports one writer at a time", fix)
    return _fail("tracking", f"{found.uri} is a local file, a different one on each node", fix)


def check_all_reduce(found: AllReduce | None) -> Finding:
    """Check that the processes of a run can sum their gradients, and how fast."""
    if found is None:
        return _ok("all-reduce", "not needed: only one process fits")
    nodes = len(set(found.nodes))
    where = (
        f"between {nodes} nodes"
        if nodes > 1
        else f"between {len(found.nodes)} processes of one node"
    )
    if found.error and found.stage == "start":
        return _fail(
            "all-reduce",
            f"a process did not start: {found.error}",
            "does another run hold the GPUs or all memory? See: ray status",
        )
    if found.error:
        name = found.backend.upper()
        return _fail(
            "all-reduce",
            f"{found.backend} {where}: {found.error}",
            "open all ports between the nodes; if they have several networks, name the one to use "
            f"on every node before Ray starts: export {name}_SOCKET_IFNAME=eth0",
        )
    speed = (
        f"{found.backend} {where}: {found.bytes_per_s / 1e9:.2f} GB/s "
        f"({found.sent_bytes / 2**20:.0f} MiB in {found.seconds:.3f} s)"
    )
    if found.bytes_per_s < _SLOW_BYTES_PER_S:
        step_s = _GRADIENT_BYTES / found.sent_bytes * found.seconds
        return _warning(
            "all-reduce",
            f"{speed}: every step of a model of 45 M parameters waits {step_s:.1f} s",
            "use nodes with a faster network, in one zone",
        )
    return _ok("all-reduce", speed)


def _facts_by_name(nodes: Sequence[Node]) -> dict[str, NodeFacts]:
    return {node.name: node.facts for node in nodes if node.facts}


def _versions(facts: NodeFacts) -> dict[str, str]:
    versions = {"python": facts.python, **facts.versions, "code": facts.code}
    # The code hash is more precise than the version, and a submitted copy has no version.
    versions.pop("boundary-squeeze", None)
    return versions


def _describe(node: Node) -> str:
    parts = [f"{node.cpus:g} CPUs"]
    parts += [f"{node.gpus:g} GPUs"] if node.gpus else []
    parts += ["head"] if node.is_head else []
    return f"{node.name} ({', '.join(parts)})"


def _ok(check: str, text: str) -> Finding:
    return Finding(check=check, level="ok", text=text)


def _warning(check: str, text: str, fix: str) -> Finding:
    return Finding(check=check, level="warning", text=text, fix=fix)


def _fail(check: str, text: str, fix: str) -> Finding:
    return Finding(check=check, level="FAIL", text=text, fix=fix)


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / _GIB:.2g} GiB"


def _group_by_text(texts: Mapping[str, str]) -> str:
    """Write each text once, after the nodes that share it."""
    names: dict[str, list[str]] = {}
    for name, text in texts.items():
        names.setdefault(text, []).append(name)
    groups = [f"{_names(each)}: {text}" for text, each in names.items()]
    more = [f"and {len(groups) - _MAX_NAMES} more"] if len(groups) > _MAX_NAMES else []
    return "; ".join([*groups[:_MAX_NAMES], *more])


def _names(names: Sequence[str]) -> str:
    return format_names(names, limit=_MAX_NAMES)
