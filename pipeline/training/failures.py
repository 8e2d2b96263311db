"""Errors of a failed worker for the user, and the decision whether to try again.

When one worker fails, the others fail too because they lose their partner. Only the first cause is
reported.
"""

from typing import TYPE_CHECKING, Any

import ray
import ray.train

# For type checkers ray.train has its old class; this is the one that it has at run time.
from ray.train.v2.api.callback import UserCallback

from pipeline.errors import PipelineError, TrainingError
from pipeline.ray_connection import is_out_of_memory
from pipeline.text import format_count

if TYPE_CHECKING:
    # Ray Train's controller imports this module for its callback, and should not import the model.
    from pipeline.training.loop import TrainJob

_PERMANENT = (
    PipelineError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    ImportError,
    NotImplementedError,
)
"""Errors that the same code and data would raise again."""

_MEMORY_ADVICE = (
    "Use fewer workers on each node (more --scale.cpus-per-worker), fewer images at once "
    "(--scale.images-per-microbatch 1), or nodes with more memory."
)

_CONNECTION_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "remote process exited",
)
"""Parts of the messages that gloo and NCCL raise when the process at the other end is gone."""


class FailureCallback(UserCallback):
    """Report lost workers, and end a run at once if another attempt would fail the same way."""

    def __init__(self, relay: Any, *, max_failures: int) -> None:  # noqa: ANN401  an actor's handle
        self._relay = relay
        self._attempts_left = max_failures

    def after_exception(
        self,
        run_context: Any,  # noqa: ANN401  Ray's signature
        worker_exceptions: dict[int, Exception],
    ) -> None:
        """Log the failure, or raise to end the run without another attempt."""
        rank, error = _find_first_cause(worker_exceptions)
        cause = _unwrap(error)
        if isinstance(cause, PipelineError):
            raise cause
        if isinstance(cause, _PERMANENT):
            raise TrainingError(_format_traceback(rank, error))
        if self._attempts_left > 0:
            self._attempts_left -= 1
            text = f"{_describe(cause)}; restarting all workers from the last checkpoint"
            self._relay.report_worker.remote(rank, text)


def to_training_error(error: Exception, relay: Any, *, job: "TrainJob") -> PipelineError:  # noqa: ANN401
    """Turn Ray Train's error into one for the user, with the first worker's traceback."""
    resume = _resume_hint(job)
    if isinstance(error, ray.train.ControllerError):
        cause = error.controller_failure
        if isinstance(cause, TrainingError):
            return TrainingError(f"{cause}\n{resume}")
        if isinstance(cause, PipelineError):
            return cause
        return TrainingError(f"{_describe_end(cause)}\n{resume}")
    failures = getattr(error, "worker_failures", {})
    if not failures:
        return TrainingError(f"Ray Train stopped: {error}\n{resume}")
    rank, first = _find_first_cause(failures)
    location = ray.get(relay.get_location.remote(rank))
    restarts = format_count(job.recipe.scale.max_failures, "restart")
    return TrainingError(
        f"{_format_traceback(rank, first)}\nIt ran on {location}, after {restarts} "
        f"(--scale.max-failures).\n{resume}"
    )


def to_ray_lost_error(error: Exception, *, job: "TrainJob") -> TrainingError:
    """Build the error for a run whose cluster stopped or whose head node died."""
    return TrainingError(
        f"Ray stopped during the run: {_summarize(error)}\nCheck the cluster with: ray status\n"
        f"{_resume_hint(job)}"
    )


def _resume_hint(job: "TrainJob") -> str:
    return f"Resume from the last checkpoint with: {job.resume_command}"


def _find_first_cause(failures: dict[int, Exception]) -> tuple[int, Exception]:
    """Pick the failure that caused the others: a permanent error, a dead process, then the rest."""
    order: tuple[Any, ...] = (PipelineError, _PERMANENT, ray.exceptions.RayActorError)

    def priority(rank: int) -> tuple[int, int]:
        cause = _unwrap(failures[rank])
        matches = [index for index, kinds in enumerate(order) if isinstance(cause, kinds)]
        return min(matches, default=len(order)), rank

    rank = min(failures, key=priority)
    return rank, failures[rank]


def _unwrap(error: Exception) -> BaseException:
    """Return the exception inside Ray Train's wrapper."""
    for name in ("_base_exc", "health_check_failure"):
        inner = getattr(error, name, None)
        if isinstance(inner, BaseException):
            return inner
    return error


def _describe(cause: BaseException) -> str:
    if is_out_of_memory(cause):
        return "was killed because its node ran out of memory"
    if isinstance(cause, ray.exceptions.RayActorError):
        return "died"
    # When a worker or its node dies, Ray often sees the broken connection of its partner first.
    if any(text in str(cause) for text in _CONNECTION_LOST):
        return "lost its connection to another worker, which died or is unreachable"
    return f"stopped ({_summarize(cause)})"


def _describe_end(cause: Exception) -> str:
    if is_out_of_memory(cause):
        return f"Ray Train stopped because a node ran out of memory. {_MEMORY_ADVICE}"
    return f"Ray Train stopped: {_summarize(cause)}"


def _format_traceback(rank: int, error: Exception) -> str:
    if is_out_of_memory(error):
        return f"worker {rank} {_describe(error)}. {_MEMORY_ADVICE}"
    return f"worker {rank} failed:\n{str(error).strip()}"


def _summarize(error: BaseException) -> str:
    """Return the type of an error and the first line of its message."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}"[:200].rstrip(": ")
