"""The call of a job: its name, its arguments, and the text for its help."""

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
