"""Let one process at a time hold a run, as it writes and deletes files in the run's folder.

The holder keeps a file in <run>/lock/ and rewrites it every HEARTBEAT_S. Object stores lock
nothing, so a process first writes its own file and then lists the folder; one that sees another
file withdraws its own and retries. Of two competing processes at least one sees the other, as each
writes before it lists. On local disks it works the same way.

A holder is taken over if its process is gone from this machine, or if it is silent for SILENT_S.
The clocks of two machines differ, so this process watches a holder on another one for that time.
"""

import getpass
import json
import logging
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pipeline import storage
from pipeline.errors import RecipeError, StorageError

_log = logging.getLogger(__name__)

HEARTBEAT_S = 10.0
SILENT_S = 60.0
_ATTEMPTS = 30
_PAUSE_S = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """The process that holds a run."""

    key: str
    host: str = "an unknown host"
    machine: str = ""
    """Identifies a boot of a machine, and a container on it: process ids are unique in it."""
    pid: int = 0
    process_start: str = ""
    user: str = ""
    since_s: float = 0.0
    alive_s: float = 0.0
    """Time of the last heartbeat."""

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        user = f", user {self.user}" if self.user else ""
        return f"{self.host} (pid {self.pid}{user}) since {since}"


@contextmanager
def hold_run(run_uri: str, *, on_loss: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Hold a run until the end of the block.

    Args:
        run_uri: the run's folder.
        on_loss: called in another thread, with a text for the user, if another process takes the
            run over because this one was silent.

    Raises:
        RecipeError: another process holds the run.
        StorageError: the folder cannot be written.
    """
    me = _describe_this_process()
    uri = _acquire(run_uri, me)
    ended = threading.Event()
    thread = threading.Thread(
        target=_beat, args=(run_uri, me, ended, on_loss), name="run lock", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with suppress(StorageError):
            storage.remove(uri)
        _remove_if_unused(run_uri)


def _acquire(run_uri: str, me: Holder) -> str:
    """Write the file of this process, alone in the folder, and return its URI."""
    uri = _lock_uri(run_uri, f"{me.key}.json")
    for _ in range(_ATTEMPTS):
        for holder in _read_holders(run_uri):
            reason = _why_gone(run_uri, holder)
            if not reason:
                raise RecipeError(_describe_conflict(run_uri, holder))
            _log.warning("taking over %s from %s: %s", run_uri, holder, reason)
            storage.remove(_lock_uri(run_uri, f"{holder.key}.json"))
        _write(uri, me)
        if [holder.key for holder in _read_holders(run_uri)] == [me.key]:
            return uri
        storage.remove(uri)
        # Random, so that competing processes do not retry in step.
        time.sleep(random.uniform(0.5, 1.5) * _PAUSE_S)  # noqa: S311  no secret
    raise RecipeError(
        f"{run_uri}: several processes try to start this run at the same time; start one of them"
    )


def _beat(run_uri: str, me: Holder, ended: threading.Event, on_loss: Callable[[str], None]) -> None:
    """Rewrite the file of this process until the run ends or another process has taken it over."""
    uri = _lock_uri(run_uri, f"{me.key}.json")
    before: set[Holder] = set()
    while not ended.wait(HEARTBEAT_S):
        try:
            # A write that crosses a takeover restores the file of this process, so look at the
            # others too. One that competed at the start has left by the next heartbeat.
            later = {each for each in _read_holders(run_uri) if each.since_s > me.since_s}
            later = {replace(each, alive_s=0.0) for each in later}
            if later & before or not storage.exists(uri):
                others = ", ".join(map(str, later))
                on_loss(
                    f"{run_uri} was taken over by {others or 'another process'}: this process was "
                    f"silent for {SILENT_S:g} s. It writes nothing more to the run"
                )
                return
            before = later
            _write(uri, me)
        except StorageError as error:
            _log.warning("event=run_lock_is_away reason=%r", str(error))


def _why_gone(run_uri: str, holder: Holder) -> str:
    """Say why a holder no longer runs; "" if it does."""
    if holder.machine == _identify_machine():
        # Only Linux tells the start; elsewhere the heartbeat decides.
        if holder.process_start != _read_process_start(holder.pid):
            return "its process is gone"
        if time.time() - holder.alive_s < SILENT_S:
            return ""
    _log.info("%s is held by %s; watching it for %g s at most", run_uri, holder, SILENT_S)
    end = time.monotonic() + SILENT_S
    while time.monotonic() < end:
        time.sleep(min(1.0, HEARTBEAT_S / 5))
        now = {each.key: each for each in _read_holders(run_uri)}
        if holder.key not in now:
            return "it has left"
        if now[holder.key] != holder:
            return ""
    return f"silent for {SILENT_S:g} s"


def _describe_conflict(run_uri: str, holder: Holder) -> str:
    place = "" if holder.machine == _identify_machine() else f", on {holder.host}"
    return (
        f"{run_uri} is held by {holder}. Only one process may train a run at a time: wait for it, "
        f"stop it (kill {holder.pid}{place}), or start a new run with: "
        f"--name {run_uri.rpartition('/')[2]}-2"
    )


def _read_holders(run_uri: str) -> list[Holder]:
    holders = []
    for uri in storage.list_files(_lock_uri(run_uri), suffix=".json"):
        key = uri.rpartition("/")[2].removesuffix(".json")
        try:
            holders.append(Holder(**json.loads(storage.read_bytes(uri))))
        except StorageError:
            continue  # It has left meanwhile.
        except (ValueError, TypeError):
            holders.append(Holder(key=key))
    return holders


def _write(uri: str, me: Holder) -> None:
    content = asdict(replace(me, alive_s=time.time()))
    storage.write_bytes_atomic(uri, json.dumps(content, indent=1).encode())


def _describe_this_process() -> Holder:
    user = ""
    with suppress(OSError, KeyError, ImportError):  # a container may have no name for its user
        user = getpass.getuser()
    return Holder(
        key=secrets.token_hex(8),
        host=socket.gethostname(),
        machine=_identify_machine(),
        pid=os.getpid(),
        process_start=_read_process_start(os.getpid()),
        user=user,
        since_s=time.time(),
    )


def _identify_machine() -> str:
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(Path("/proc/self/ns/pid").readlink().name)
    return " ".join(parts)


def _read_process_start(pid: int) -> str:
    """Return when a process started, as another one may have its id later; "" if not known."""
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in {"Z", "X"} else numbers[18]


def _lock_uri(run_uri: str, *parts: str) -> str:
    return storage.join(run_uri, "lock", *parts)


def _remove_if_unused(run_uri: str) -> None:
    """Remove the folders of a run that was refused before it wrote anything."""
    if storage.is_local(run_uri):
        run = Path(storage.absolute(run_uri))
        with suppress(OSError):
            if [path.name for path in run.iterdir()] == ["lock"]:
                for folder in (run / "lock", run, run.parent):
                    folder.rmdir()
