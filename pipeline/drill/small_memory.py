"""Run a command with a limit of memory, as in a container, and fill the memory beside it."""

import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import DrillSkippedError

_END_TIMEOUT_S = 60.0
_GROUPS = Path("/sys/fs/cgroup")
_ENTER = 'echo $$ > "$0/cgroup.procs"; mount --bind "$0" "$1"; shift; exec "$@"'
"""Join a group, and see it as the whole machine, as Ray does in a container."""
_FILL = """
import sys, threading, time
used, limit, chunks = sys.argv[1], [0], []
def follow():
    for line in sys.stdin:
        limit[0] = int(line)
threading.Thread(target=follow, daemon=True).start()
def read():
    with open(used) as stream:
        return int(stream.read())
while True:
    while read() < limit[0]:
        chunks.append(b"x" * 2**22)
        time.sleep(0.001)
    time.sleep(0.05)
"""
"""Takes memory until the group uses as much as the last line of its input says, and again when the
group uses less."""


class Filler:
    """A process that takes memory.

    Args:
        process: its input is the number of bytes.
        limit: of the group, in bytes.
    """

    def __init__(self, process: "subprocess.Popen[str]", limit: int) -> None:
        self._process, self._limit = process, limit

    def fill(self, share: float) -> None:
        """Keep a share of the limit in use from now on, without waiting for it."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{int(share * self._limit)}\n")
        self._process.stdin.flush()


class SmallMemory:
    """A control group with a limit.

    Args:
        limit_mb: of all processes together; the kernel kills one if they need more.
    """

    def __init__(self, limit_mb: int) -> None:
        # Version 1 has a folder for each resource.
        is_old = (_GROUPS / "memory").is_dir()
        self._root = _GROUPS / "memory" if is_old else _GROUPS
        self._folder = self._root / f"drill-{uuid.uuid4().hex[:8]}"
        self._used = self._folder / ("memory.usage_in_bytes" if is_old else "memory.current")
        self._limit = limit_mb * 2**20
        try:
            self._folder.mkdir()
            limit = "memory.limit_in_bytes" if is_old else "memory.max"
            (self._folder / limit).write_text(str(self._limit))
        except OSError as error:
            raise DrillSkippedError(f"this user cannot limit memory: {error}") from None
        if subprocess.run([*self.enter, "true"], check=False).returncode:
            self.close()
            raise DrillSkippedError("only root can run a command as in a container")

    @property
    def enter(self) -> list[str]:
        """The words before a command that runs in the group."""
        folders = (str(self._folder), str(self._root))
        return ["unshare", "--mount", "sh", "-ec", _ENTER, *folders]

    @contextmanager
    def filler(self) -> Iterator[Filler]:
        """Start a process that takes memory when it is told to; end it with the block."""
        used = str(self._root / self._used.name)
        words = [*self.enter, sys.executable, "-c", _FILL, used]
        with subprocess.Popen(words, stdin=subprocess.PIPE, text=True) as process:
            try:
                yield Filler(process, self._limit)
            finally:
                process.kill()

    def close(self) -> None:
        """Remove the group, once its processes have ended."""
        end_s = time.monotonic() + _END_TIMEOUT_S
        while (self._folder / "cgroup.procs").read_text() and time.monotonic() < end_s:
            time.sleep(0.2)
        self._folder.rmdir()


@contextmanager
def small_memory(limit_mb: int) -> Iterator[SmallMemory]:
    """Make a control group for the block."""
    memory = SmallMemory(limit_mb)
    try:
        yield memory
    finally:
        memory.close()
