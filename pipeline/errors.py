"""Errors for users: the wrong value, its place, the rule, and the next command.

A job prints such an error without a traceback and exits with its exit code.
"""

import signal
from collections.abc import Mapping
from typing import Any, ClassVar


class PipelineError(Exception):
    """An error whose text is written for the user."""

    exit_code: ClassVar[int] = 1


class RecipeError(PipelineError):
    """An invalid recipe or command line."""

    exit_code = 2


class DatasetError(PipelineError):
    """An invalid data set, shard or results file."""

    exit_code = 2


class StorageError(PipelineError):
    """A path or URI that cannot be read or written."""

    exit_code = 2


class SetupError(PipelineError):
    """An environment or a Ray cluster that cannot be used; has the problem and its fix apart."""

    exit_code = 2

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(problem, fix)
        self.problem, self.fix = problem, fix

    def __str__(self) -> str:
        return f"{self.problem}; {self.fix}"


class TrainingError(PipelineError):
    """A run that cannot continue."""


class DrillError(PipelineError):
    """A fault after which something was lost, or was not told as it should be."""


class DrillSkippedError(PipelineError):
    """A fault that this machine cannot have."""


class RegistryError(PipelineError):
    """A model that cannot be registered, promoted or loaded."""

    exit_code = 2


class Terminated(KeyboardInterrupt):
    """SIGTERM ended the job; the text is for the user, with the command that resumes."""

    exit_code: ClassVar[int] = 128 + signal.SIGTERM


class ClusterError(PipelineError):
    """A cluster that cannot train; carries the findings for the RESULT line."""

    def __init__(self, text: str, *, result: Mapping[str, Any]) -> None:
        super().__init__(text)
        self.result = dict(result)
