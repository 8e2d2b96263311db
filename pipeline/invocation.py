"""The call of a job: its name, its arguments, the text for its help, and its log lines."""

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field


def _running_file() -> str:
    return os.path.relpath(sys.argv[0])


def _arguments() -> tuple[str, ...]:
    return tuple(sys.argv[1:])


def _keep(text: str) -> str:
    return text


def _docstring() -> str:
    return getattr(sys.modules.get("__main__"), "__doc__", None) or ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Invocation:
    """The call of a job; by default of the file that Python runs."""

    program: str = field(default_factory=_running_file)
    """As users type it: jobs/ingest.py, or bsm ingest."""
    arguments: tuple[str, ...] = field(default_factory=_arguments)
    """After the program."""
    docstring: str = field(default_factory=_docstring)
    """Text for --help."""
    name_commands: Callable[[str], str] = _keep
    """Writes `python jobs/ingest.py` in an error or a log line as users typed the command."""

    @property
    def command(self) -> str:
        """The start of a command that users can copy."""
        return f"python {self.program}" if self.program.endswith(".py") else self.program


class _Formatter(logging.Formatter):
    """Formats the message alone, with commands as users type them."""

    def __init__(self, call: Invocation) -> None:
        super().__init__("%(message)s")
        self._call = call

    def format(self, record: logging.LogRecord) -> str:
        """Format a line."""
        return self._call.name_commands(super().format(record))


def set_up_logging(call: Invocation) -> None:
    """Log to standard output: our lines from INFO, and warnings of other packages."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Formatter(call))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for ours in ("bsm", "pipeline", "jobs", "__main__"):
        logging.getLogger(ours).setLevel(logging.INFO)
