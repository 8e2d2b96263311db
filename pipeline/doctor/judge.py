"""From what was found out to what it means: one finding for each check, with the fix.

Nothing here asks a cluster anything.
"""

from collections.abc import Mapping, Sequence

from pipeline.doctor.facts import (
    AllReduce,
    Answer,
    Authentication,
    Finding,
    Node,
    RoundTrip,
    Tracking,
)

_GIB = 2**30
_SKEW_WARNING_S = 1.0
# Object stores refuse requests that are signed minutes off; five are too many for some.
_SKEW_LIMIT_S = 300.0
_DISK_WARNING_BYTES = 20 * _GIB
# Ray keeps no more objects on a disk that is fuller than this.
_DISK_FULLEST = 0.95
_SLOW_BYTES_PER_S = 0.1e9
# What a step sums: the float32 gradients of a model of 45 M parameters.
_GRADIENT_BYTES = 4 * 45_000_000
_REFUSED = (401, 403)
_MOST_NAMES = 4
_SHM = "/dev/shm"  # noqa: S108  named, not written to


def no_ray(address: str, error: str) -> Finding:
    """This process does not get to Ray."""
    if "Authentication" in error:
        fix = (
            "take the cluster's token: export RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or the file "
            "~/.ray/auth_token as they are on the head"
        )
    else:
        fix = (
            "start Ray there (ray start --head), correct RAY_ADDRESS (HEAD:6379), or unset it to "
            "look at this machine alone"
        )
    return _fail("ray", f"RAY_ADDRESS={address} does not let this process in: {error}", fix)


def answering(nodes: Sequence[Node]) -> Finding:
    """Whether every node says anything at all."""
    silent = {node.name: node.error for node in nodes if node.answer is None}
    if silent:
        return _fail(
            "nodes",
            f"{len(silent)} of {_count(len(nodes), 'node')} did not answer: {_by_node(silent)}",
            "look at that machine (does it respond, is memory left, are Python, Ray and this "
            "package there?), or take it out of the cluster with `ray stop` on it",
        )
    return _ok("nodes", f"{_count(len(nodes), 'node')}: {_some([_described(n) for n in nodes])}")


def versions(nodes: Sequence[Node], *, expected: Answer) -> Finding:
    """Whether all nodes run the same software as the process that asks."""
    answers = _answers(nodes)
    fix = "run one image, built from requirements.lock (cluster/Dockerfile), on every node"
    missing = [name for name, answer in answers.items() if not answer.code]
    if missing:
        return _fail("versions", f"this package is missing on {_some(missing)}", fix)
    told = {"python": expected.python, **expected.versions, "code": expected.code}
    # Its number says less than the hash of its files, and a submitted copy has none.
    told.pop("boundary-squeeze", None)
    others = [
        f"{what} {_said(answer, what) or 'missing'} on {name}, {value} here"
        for what, value in told.items()
        for name, answer in answers.items()
        if _said(answer, what) != value
    ]
    if others:
        return _fail("versions", f"not the same everywhere: {_some(others)}", fix)
    said = ", ".join(f"{what} {told[what]}" for what in ("python", "ray", "torch", "mlflow"))
    return _ok("versions", f"{said}, this package's code {expected.code} wherever asked")


def gpus(nodes: Sequence[Node], *, use_gpu: bool) -> Finding:
    """Whether the GPUs that Ray counts are there, alike, and of use to torch."""
    answers = _answers(nodes)
    there = [gpu for answer in answers.values() for gpu in answer.gpus]
    fault = _gpu_fault(nodes, answers, use_gpu=use_gpu)
    if fault:
        return fault
    if not there:
        return _ok("GPUs", "none: a CPU-only cluster")
    kinds = sorted({f"{gpu.name} ({gpu.memory_mib / 1024:.0f} GiB)" for gpu in there})
    drivers = sorted({gpu.driver for gpu in there})
    text = f"{len(there)}: {' and '.join(kinds)}, driver {' and '.join(drivers)}"
    counted = sum(node.gpus for node in nodes if node.name in answers)
    if counted < len(there):
        return _warning(
            "GPUs", f"{text}; Ray counts {counted:g}", "to use them all: ray start --num-gpus N"
        )
    if len(kinds) > 1 or len(drivers) > 1:
        return _warning(
            "GPUs", f"{text}: not alike", "every step waits for the slowest; use nodes of one kind"
        )
    return _ok("GPUs", text)


def _gpu_fault(
    nodes: Sequence[Node], answers: Mapping[str, Answer], *, use_gpu: bool
) -> Finding | None:
    broken = {name: answer.gpus_error for name, answer in answers.items() if answer.gpus_error}
    if broken:
        return _fail("GPUs", _by_node(broken), "restart the driver or the machine")
    missing = {
        node.name: f"Ray counts {node.gpus:g}, the driver {len(answers[node.name].gpus)}"
        for node in nodes
        if node.name in answers and node.gpus > len(answers[node.name].gpus)
    }
    if missing:
        return _fail(
            "GPUs",
            _by_node(missing),
            "give the container its GPUs (docker run --gpus all; nvidia.com/gpu in a Pod's "
            "limits), or start Ray with the true number: ray start --num-gpus N",
        )
    blind = [name for name, answer in answers.items() if answer.gpus and not answer.cuda_build]
    if blind:
        return _fail(
            "GPUs",
            f"torch is built without CUDA on {_some(blind)}",
            "install torch as requirements.lock has it, from an index with CUDA builds",
        )
    if use_gpu and not any(answer.gpus for answer in answers.values()):
        return _fail(
            "GPUs",
            "none, and the job trains on GPUs",
            "add nodes with GPUs, let them join (--wait-s 900 asks an autoscaler for them), or "
            "train on CPUs: --scale.no-use-gpu",
        )
    return None


def authentication(found: Authentication, *, node_count: int) -> Finding:
    """Whether a stranger is refused."""
    if found.status in _REFUSED:
        return _ok("authentication", f"{found.address} refuses requests without a token")
    if found.status is None and found.mode == "token":
        return _ok("authentication", "RAY_AUTH_MODE=token on all nodes; there is no dashboard")
    alone = node_count == 1 and found.address.startswith(("127.", "localhost", "[::1]"))
    where = found.address or "the cluster"
    return Finding(
        check="authentication",
        level="warning" if alone else "FAIL",
        text=f"{where} asks for no token (RAY_AUTH_MODE is {found.mode or 'unknown'}): whoever "
        "reaches it runs code here",
        fix="before Ray starts, on every node: export RAY_AUTH_MODE=token, with one and the same "
        "token, which `ray get-auth-token --generate` makes",
    )


def clocks(nodes: Sequence[Node]) -> Finding:
    """Whether all nodes agree what time it is."""
    known = {node.name: node.clock for node in nodes if node.clock}
    if not known:
        return _warning("clocks", "no node said what time it is", "see the nodes above")
    first = min(known, key=lambda name: known[name].offset_s)
    last = max(known, key=lambda name: known[name].offset_s)
    spread = known[last].offset_s - known[first].offset_s
    # What the round trips leave open speaks for the nodes.
    sure = max(0.0, spread - known[first].error_s - known[last].error_s)
    if sure <= _SKEW_WARNING_S:
        open_s = max(clock.error_s for clock in known.values())
        return _ok("clocks", f"within {max(spread, open_s) * 1000:.1f} ms of each other")
    return Finding(
        check="clocks",
        level="FAIL" if sure > _SKEW_LIMIT_S else "warning",
        text=f"{last} is {sure:.1f} s ahead of {first}: times in logs and runs are off"
        + (", and object stores refuse its requests" if sure > _SKEW_LIMIT_S else ""),
        fix="set the clocks by NTP on every node: timedatectl set-ntp true",
    )


def disk(nodes: Sequence[Node]) -> Finding:
    """Whether the disks that Ray writes to have room."""
    answers = _answers(nodes)
    full = {
        name: f"{1 - answer.disk_free_bytes / answer.disk_total_bytes:.0%} full"
        for name, answer in answers.items()
        if answer.disk_free_bytes < (1 - _DISK_FULLEST) * answer.disk_total_bytes
    }
    fix = "free some, or start Ray on a larger disk: ray start --temp-dir PATH"
    if full:
        return _fail("disk", f"Ray's disk is full: {_by_node(full)}", fix)
    free = {name: answer.disk_free_bytes for name, answer in answers.items()}
    if not free:
        return _warning("disk", "no node said how much is free", "see the nodes above")
    least = min(free, key=free.__getitem__)
    text = f"{free[least] / _GIB:.0f} GiB free on Ray's disk on {least}"
    if free[least] < _DISK_WARNING_BYTES:
        return _warning("disk", text, fix)
    return _ok("disk", f"{text}, which has the least")


def shared_memory(nodes: Sequence[Node]) -> Finding:
    """Whether the object store fits into /dev/shm."""
    answers = _answers(nodes)
    small = {
        node.name: f"{_gib(answers[node.name].shm_total_bytes)} for an object store of "
        f"{_gib(node.object_store_bytes)}"
        for node in nodes
        if node.name in answers and answers[node.name].shm_total_bytes < node.object_store_bytes
    }
    if small:
        return _warning(
            "shared memory",
            f"{_SHM} is too small, and Ray puts its objects on disk: {_by_node(small)}",
            "give the container more (docker run --shm-size 32g; in a Pod, an emptyDir with "
            "medium: Memory at /dev/shm), or Ray less: ray start --object-store-memory BYTES",
        )
    if not answers:
        return _warning("shared memory", "no node said how much it has", "see the nodes above")
    stores = [node.object_store_bytes for node in nodes if node.name in answers]
    return _ok("shared memory", f"{_SHM} holds the object stores ({_gib(min(stores))} or more)")


def storage(found: RoundTrip, *, node_count: int) -> Finding:
    """Whether every node writes where every other one reads."""
    unwritten = {name: error for name, error in found.wrote.items() if error}
    if unwritten:
        return _fail(
            "storage",
            f"{found.uri} cannot be written on {len(unwritten)} of {_count(node_count, 'node')}: "
            f"{_by_node(unwritten)}",
            "make the folder and give the user that runs Ray the right to write, or name another "
            "place: --storage s3://BUCKET/runs"
            if found.is_local
            else "check AWS_ENDPOINT_URL and that it is up, the bucket's name and rights, and the "
            "credentials or the role of every node",
        )
    unread = {name: error for name, error in found.read.items() if error}
    apart = [name for name, error in unread.items() if error.startswith("FileNotFoundError")]
    if apart and found.is_local:
        name = apart[0]
        return _fail(
            "storage",
            f"{found.uri} is not shared: what {found.read_from[name]} wrote is not there on {name}",
            "mount one shared folder (NFS, a ReadWriteMany volume) at this path on every node, or "
            "name an object store: --storage s3://BUCKET/runs",
        )
    if unread:
        return _fail(
            "storage",
            f"{found.uri} is not read as it was written: {_by_node(unread)}",
            "give every node the right to read, and take a store that shows what was written",
        )
    if found.left_over:
        return _warning("storage", f"not deleted: {found.left_over}", "allow deleting, too")
    how = (
        f"written on each of {node_count} nodes, read on another one"
        if node_count > 1
        else "written and read"
    )
    return _ok("storage", f"{found.uri}: {how}, deleted, in {found.seconds:.1f} s")


def storage_unnamed() -> Finding:
    """Nobody said where results go."""
    return _warning(
        "storage",
        "not looked at: a submitted job has no folder of its own to write to",
        "name the place, absolute or a URI: --storage s3://BUCKET/runs",
    )


def tracking(found: Tracking, *, storage: RoundTrip | None, node_count: int) -> Finding:
    """Whether the workers can log."""
    fix = (
        "start an MLflow server that every node reaches (cluster/README.md) and name it: "
        "--tracking-uri http://HOST:5000"
    )
    if found.is_embedded:
        is_inside = storage is not None and storage.uri in found.uri
        if storage and is_inside and any(storage.wrote.values()):
            return _fail("tracking", f"{found.uri} lies where nothing can be written", fix)
        if node_count == 1:
            return _ok("tracking", f"{found.uri}, on this machine")
        if storage and is_inside and not any(storage.read.values()):
            return _warning("tracking", f"{found.uri}: SQLite bears one writer at a time", fix)
        return _fail("tracking", f"{found.uri} is a file, which each node has for itself", fix)
    away = {name: error for name, error in found.errors.items() if error}
    if away:
        return _fail(
            "tracking",
            f"{found.uri} does not answer on {len(away)} of {_count(node_count, 'node')}: "
            f"{_by_node(away)}",
            "start the server (cluster/README.md), let the nodes reach its port, name them in its "
            "--allowed-hosts, or correct --tracking-uri",
        )
    return _ok("tracking", f"{found.uri} answers on every node, in {found.seconds:.1f} s at most")


def all_reduce(found: AllReduce | None) -> Finding:
    """Whether the processes of a run can sum their gradients, and how fast."""
    if found is None:
        return _ok("all-reduce", "nothing to sum: there is room for one process")
    nodes = sorted(set(found.nodes))
    where = (
        f"between {len(nodes)} nodes"
        if len(nodes) > 1
        else f"between {len(found.nodes)} processes of one node"
    )
    if found.error and found.stage == "start":
        return _fail(
            "all-reduce",
            f"no process for it: {found.error}",
            "is another run holding the GPUs or all memory? See: ray status",
        )
    if found.error:
        name = found.backend.upper()
        return _fail(
            "all-reduce",
            f"{found.backend} {where}: {found.error}",
            "open all ports between the nodes, and where they have several networks name the one "
            f"to take, on every node before Ray starts: export {name}_SOCKET_IFNAME=eth0",
        )
    text = (
        f"{found.backend} {where}: {found.bytes_per_s / 1e9:.2f} GB/s "
        f"({found.sent_bytes / 2**20:.0f} MiB in {found.seconds:.3f} s)"
    )
    if found.bytes_per_s < _SLOW_BYTES_PER_S:
        step_s = _GRADIENT_BYTES / found.sent_bytes * found.seconds
        return _warning(
            "all-reduce",
            f"{text}: every step of a model of 45 M parameters waits {step_s:.1f} s",
            "use nodes with a faster network, in one zone",
        )
    return _ok("all-reduce", text)


def _answers(nodes: Sequence[Node]) -> dict[str, Answer]:
    return {node.name: node.answer for node in nodes if node.answer}


def _said(answer: Answer, what: str) -> str:
    match what:
        case "python":
            return answer.python
        case "code":
            return answer.code
        case _:
            return answer.versions.get(what, "")


def _described(node: Node) -> str:
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


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _gib(number: int) -> str:
    return f"{number / _GIB:.2g} GiB"


def _by_node(told: Mapping[str, str]) -> str:
    """Say a thing once where several nodes say it."""
    names: dict[str, list[str]] = {}
    for name, text in told.items():
        names.setdefault(text, []).append(name)
    return _some([f"{_some(each)}: {text}" for text, each in names.items()], separator="; ")


def _some(parts: Sequence[str], *, separator: str = ", ") -> str:
    more = [f"and {len(parts) - _MOST_NAMES} more"] if len(parts) > _MOST_NAMES else []
    return separator.join([*parts[:_MOST_NAMES], *more])
