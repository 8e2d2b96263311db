"""Stop a run from outside: on SIGTERM with a checkpoint, or because it lost its lock.

While the loop trains, the first SIGTERM only asks it to stop: it finishes its step, writes a
checkpoint and leaves. At any other time, and at the second SIGTERM, the job ends at once.
"""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from pipeline.errors import Terminated, TrainingError

_log = logging.getLogger(__name__)

Stop = Literal["", "save", "leave"]
"""How a loop must stop before its next step: not at all, with a checkpoint, or writing nothing."""


class StopRequest:
    """A request to stop a run, seen by its loop before each step."""

    def __init__(self, resume_command: str = "") -> None:
        self.resume_command = resume_command
        self._requested = threading.Event()
        self._is_in_loop = False
        self._is_terminated = False
        self._loss = ""

    @property
    def action(self) -> Stop:
        """What the loop must do before its next step."""
        if self._loss:
            return "leave"
        return "save" if self._requested.is_set() else ""

    def lose(self, reason: str) -> None:
        """Stop the run without another write: another process holds it now."""
        self._loss = reason
        self._requested.set()

    def wait(self, timeout_s: float) -> bool:
        """Wait for a request; return whether there is one."""
        return self._requested.wait(timeout_s)

    def raise_if_lost(self) -> None:
        """End the run if another process holds it now.

        Raises:
            TrainingError: it does.
        """
        if self._loss:
            raise TrainingError(self._loss)

    def terminated(self, done: str = "") -> Terminated:
        """Build the exception that ends the job."""
        return Terminated(f"stopped by SIGTERM{done}. Resume with: {self.resume_command}")

    @contextmanager
    def training(self) -> Iterator[None]:
        """Let the loop stop itself on the first SIGTERM."""
        self._is_in_loop = True
        try:
            yield
        finally:
            self._is_in_loop = False

    @contextmanager
    def catch_sigterm(self) -> Iterator[None]:
        """Handle SIGTERM in this process; in a thread, as in a trial of a sweep, do nothing.

        After Ctrl-C, the command that resumes is logged.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGTERM)
        self.install()
        try:
            yield
        except SystemExit as error:
            # Ray's own handler, which it installs when it starts.
            if error.code == signal.SIGTERM:
                raise self.terminated() from None
            raise
        except Terminated:
            raise
        except KeyboardInterrupt:
            # Ray replaces what the handler raises while Ray waits.
            if self._is_terminated:
                raise self.terminated() from None
            _log.info("Stopped. Resume with: %s", self.resume_command)
            raise
        finally:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)

    def install(self) -> None:
        """Set the handler; call this again after Ray has started, which sets its own."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._handle)

    def _handle(self, *_: object) -> None:
        # Prints nothing: the signal may have interrupted a print.
        self.raise_if_lost()
        if self._requested.is_set() or not self._is_in_loop:
            self._is_terminated = True
            raise self.terminated()
        self._requested.set()
