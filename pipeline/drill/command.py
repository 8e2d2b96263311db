"""A command in a process of its own, with the time of each line that it prints."""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import DrillError

TIMEOUT_S = 600.0
"""Longest wait for a line: a busy machine takes minutes to start a run."""


class Line(NamedTuple):
    """One line of output."""

    number: int
    at_s: float
    """Of time.monotonic."""
    text: str


class Command:
    """A running command; its standard error is read with its output.

    Args:
        words: the program and its arguments.
        environment: of the process.
        folder: that it runs in; by default that of this process.
    """

    def __init__(
        self, words: Sequence[str], environment: Mapping[str, str], *, folder: Path | None = None
    ) -> None:
        self.started_s = time.monotonic()
        self.process = subprocess.Popen(
            words,
            cwd=folder,
            env=dict(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: list[Line] = []
        self._changed = threading.Condition()
        self._has_ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for text in self.process.stdout:
            with self._changed:
                self.lines.append(Line(len(self.lines), time.monotonic(), text.rstrip()))
                self._changed.notify_all()
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def find(self, pattern: str, *, after: int = -1) -> Line | None:
        """Return the first line that matches a pattern, after the line with a number."""
        lines = self.lines[after + 1 :]
        return next((line for line in lines if re.search(pattern, line.text)), None)

    def wait_for(self, pattern: str, *, after: int = -1) -> Line:
        """Wait for a line that matches a pattern.

        Raises:
            DrillError: the command ended without it, or did not print it in time.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._has_ended or self.find(pattern, after=after), timeout=TIMEOUT_S
            )
        if line := self.find(pattern, after=after):
            return line
        state = "ended" if self._has_ended else f"ran for another {TIMEOUT_S:g} s"
        raise DrillError(f"the command {state} without a line like {pattern!r}:\n{self.tail}")

    def wait(self) -> int:
        """Wait for the end, and return the exit code.

        Raises:
            DrillError: it did not end in time; it was killed.
        """
        try:
            code = self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise DrillError(f"the command did not end in time:\n{self.tail}") from None
        self._reader.join(10)
        return code

    def send(self, number: signal.Signals) -> float:
        """Send a signal to the process alone; return the time."""
        self.process.send_signal(number)
        return time.monotonic()

    def send_to_group(self, number: signal.Signals) -> float:
        """Send a signal to the process and all that it has started; return the time."""
        os.killpg(self.process.pid, number)
        return time.monotonic()

    def kill(self) -> None:
        """Kill the process, and all that it has started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.process.wait()
        self._reader.join(10)

    @property
    def tail(self) -> str:
        """The last lines."""
        return "\n".join(line.text for line in self.lines[-40:])
