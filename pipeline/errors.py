"""The errors that users see: what was wrong, where, the rule, and what to type next.

A job prints such an error without a traceback and exits with the error's own code.
"""

from collections.abc import Mapping
from typing import Any, ClassVar


class PipelineError(Exception):
    """An error whose text is written for the user."""

    exit_code: ClassVar[int] = 1


class RecipeError(PipelineError):
    """A recipe or a command line that cannot be run."""

    exit_code = 2


class DatasetError(PipelineError):
    """A data set, shard or results file that breaks a rule."""

    exit_code = 2


class StorageError(PipelineError):
    """A path or URI that cannot be read or written."""

    exit_code = 2


class TrainingError(PipelineError):
    """A run that cannot go on."""


class RegistryError(PipelineError):
    """A model that cannot be registered, promoted or loaded."""

    exit_code = 2


class ClusterError(PipelineError):
    """A cluster that cannot train as it is; what was found out is told all the same."""

    def __init__(self, text: str, *, result: Mapping[str, Any]) -> None:
        super().__init__(text)
        self.result = dict(result)
        """What the job's RESULT line holds."""
