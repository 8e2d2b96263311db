"""Read what a run has logged: its curves, and the environment of its processes."""

from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.errors import StorageError
from pipeline.tracking.stores import create_client, format_error, redact

_VERSION = "version."


@dataclass(frozen=True, kw_only=True, slots=True)
class RunHistory:
    """The curves and the environment of a run."""

    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """(step, value) in the order of the steps, by metric."""
    environment: dict[str, str] = field(default_factory=dict)
    """Version of Python and of each package, and git_commit."""


def read_history(tracking_uri: str, run_id: str, *, wants: Callable[[str], bool]) -> RunHistory:
    """Read the history of a run.

    Args:
        tracking_uri: the full URI of the store.
        run_id: MLflow's id.
        wants: selects metrics by name.

    Raises:
        StorageError: the store does not answer, or has no such run.
    """
    try:
        store = create_client(tracking_uri)
        run = store.get_run(run_id)
        curves = {
            name: {each.step: each.value for each in store.get_metric_history(run_id, name)}
            for name in run.data.metrics
            if wants(name)
        }
    except StorageError:
        raise
    except Exception as error:  # MLflow, requests, urllib3 and SQLAlchemy share no base class
        raise StorageError(
            f"tracking store {redact(tracking_uri)} does not give run {run_id} "
            f"({format_error(error)})"
        ) from None
    tags = run.data.tags
    environment = {
        name.removeprefix(_VERSION): value
        for name, value in sorted(tags.items())
        if name.startswith(_VERSION) or name == "git_commit"
    }
    return RunHistory(
        curves={name: sorted(points.items()) for name, points in curves.items()},
        environment=environment,
    )
