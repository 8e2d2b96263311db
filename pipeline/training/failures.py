"""What a user learns when a worker fails, and which failures are worth another attempt.

The other workers fail too, because their partner is gone; only the first cause is told.
"""

from typing import Any

import ray
import ray.train

# ray.train shows type checkers its old class; this is what it gives at run time.
from ray.train.v2.api.callback import UserCallback

from pipeline.errors import PipelineError, TrainingError
from pipeline.training.loop import TrainJob

_HOPELESS = (
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
"""Errors that the same code and data would raise again: starting anew does not help."""


_PARTNER_GONE = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "remote process exited",
)
"""What gloo and NCCL say when a worker at the other end is gone, each in a page of its own."""


class Watch(UserCallback):
    """Tells of a lost worker, and ends a run that another attempt cannot help."""

    def __init__(self, relay: Any, *, max_failures: int) -> None:  # noqa: ANN401  an actor's handle
        self._relay = relay
        self._left = max_failures

    def after_exception(
        self,
        run_context: Any,  # noqa: ANN401  Ray's signature
        worker_exceptions: dict[int, Exception],
    ) -> None:
        """Say what happened; raising here ends the run without another attempt."""
        rank, error = _first_cause(worker_exceptions)
        cause = _unwrapped(error)
        if isinstance(cause, PipelineError):
            raise cause
        if isinstance(cause, _HOPELESS):
            raise TrainingError(_with_traceback(rank, error))
        if self._left > 0:
            self._left -= 1
            text = f"{_what(cause)}; starting all workers again from the last checkpoint"
            self._relay.lost.remote(rank, text)


def explained(error: Exception, relay: Any, *, job: TrainJob) -> PipelineError:  # noqa: ANN401
    """Turn Ray Train's error into one for the user, with the first worker's traceback once."""
    resume = f"Go on from the last checkpoint with: {job.resume_command}"
    if isinstance(error, ray.train.ControllerError):
        cause = error.controller_failure
        if isinstance(cause, TrainingError):
            return TrainingError(f"{cause}\n{resume}")
        if isinstance(cause, PipelineError):
            return cause
        return TrainingError(f"Ray Train stopped: {_short(cause)}\n{resume}")
    failures = getattr(error, "worker_failures", {})
    if not failures:
        return TrainingError(f"Ray Train stopped: {error}\n{resume}")
    rank, first = _first_cause(failures)
    place = ray.get(relay.place_of.remote(rank))
    return TrainingError(
        f"{_with_traceback(rank, first)}\nIt ran on {place}, after {job.recipe.scale.max_failures} "
        f"restarts (--scale.max-failures).\n{resume}"
    )


def lost(error: Exception, *, job: TrainJob) -> TrainingError:
    """Say that Ray itself went away under a run: a stopped cluster, a dead head node."""
    return TrainingError(
        f"Ray stopped under the run: {_short(error)}\nSee that the cluster is up with: ray status\n"
        f"Go on from the last checkpoint with: {job.resume_command}"
    )


def _first_cause(failures: dict[int, Exception]) -> tuple[int, Exception]:
    """Pick the failure that the others follow from: a broken rule, a dead process, the rest."""

    def order(rank: int) -> tuple[int, int]:
        cause = _unwrapped(failures[rank])
        kinds: list[type[BaseException] | tuple[type[BaseException], ...]] = [
            PipelineError,
            _HOPELESS,
            ray.exceptions.RayActorError,
        ]
        found = next((i for i, kind in enumerate(kinds) if isinstance(cause, kind)), len(kinds))
        return found, rank

    rank = min(failures, key=order)
    return rank, failures[rank]


def _unwrapped(error: Exception) -> BaseException:
    """Take off what Ray Train wraps around a worker's exception."""
    for name in ("_base_exc", "health_check_failure"):
        inner = getattr(error, name, None)
        if isinstance(inner, BaseException):
            return inner
    return error


def _what(cause: BaseException) -> str:
    if isinstance(cause, ray.exceptions.RayActorError):
        return "died"
    # When a worker or its whole node dies, its partner's broken connection is seen first.
    if any(sign in str(cause) for sign in _PARTNER_GONE):
        return "lost its connection to another worker, which died or is out of reach"
    return f"stopped ({_short(cause)})"


def _with_traceback(rank: int, error: Exception) -> str:
    return f"worker {rank} failed:\n{str(error).strip()}"


def _short(error: BaseException) -> str:
    """One line: the kind of error and how it begins."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}"[:200].rstrip(": ")
