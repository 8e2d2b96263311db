"""One MLflow run for each training run: opened in the driver, resumed with it, never a second one.

    handle = open_run(recipe, data_fingerprint=manifest.fingerprint)
    log = MetricLog(handle.tracking_uri, handle.run_id, handle.spool_uri)   # in rank 0
    send_spooled(handle.tracking_uri, handle.run_id, handle.spool_uri)
    log_artifacts(handle, "detections.json")
    finish(handle)

A random key in the run's own folder ties the two together: it is written before the MLflow run is
made and is a tag of it, so that a crash at any point finds the same run again, and a folder that
was deleted starts a fresh one.
"""

import json
import logging
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline import storage
from pipeline.errors import StorageError
from pipeline.recipe import Recipe, fingerprint, to_json
from pipeline.recipe_json import leaves
from pipeline.tracking.environment import environment, requirements_here
from pipeline.tracking.metric_log import MetricLog, send_spooled
from pipeline.tracking.spool import Point, new_spool
from pipeline.tracking.stores import client, in_words, masked, sqlite_path, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

__all__ = [
    "MetricLog",
    "RunHandle",
    "finish",
    "log_artifacts",
    "log_metrics",
    "open_run",
    "run_id_of",
    "send_spooled",
    "tracking_uri",
]

_log = logging.getLogger(__name__)

KEY_TAG = "bsm.key"
_PARENT_TAG = "mlflow.parentRunId"
_RECORD = "tracking.json"
_PARAMS_PER_BATCH = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class RunHandle:
    """What another process needs in order to log to the run; plain texts only."""

    # May hold a password, which no log line that shows a handle should.
    tracking_uri: str = field(repr=False)
    """The full URI, also of the embedded store."""
    experiment_id: str
    """MLflow's id."""
    run_id: str
    """MLflow's id."""
    spool_uri: str
    """Where metrics wait while the store is away."""

    @property
    def url(self) -> str:
        """Where a person looks at the run: a page, or the command that serves it."""
        if sqlite_path(self.tracking_uri) is not None:
            return f"mlflow ui --backend-store-uri {self.tracking_uri}"
        page = f"{self.tracking_uri.rstrip('/')}/#/experiments/{self.experiment_id}"
        return masked(f"{page}/runs/{self.run_id}")


def open_run(
    recipe: Recipe,
    *,
    data_fingerprint: str = "",
    started_from: str = "",
    parent_run_id: str = "",
) -> RunHandle:
    """Open the MLflow run of a recipe, or go on with the one that an earlier attempt opened.

    A store that does not answer is an error the first time, when it may be a slip in the URI; a run
    that was tracked before goes on, and its metrics wait on disk.

    Args:
        recipe: what runs.
        data_fingerprint: of the split that is trained on.
        started_from: the registered version whose weights it starts from, models:/NAME/VERSION.
        parent_run_id: MLflow's run that this one is shown under.

    Raises:
        StorageError: the store does not answer and the run was never tracked there.
    """
    uri = tracking_uri(recipe.tracking.uri, storage_uri=recipe.storage)
    folder = storage.absolute(storage.join(recipe.storage, recipe.name))
    spool_uri = storage.join(folder, "spool")
    record = _read_record(folder)
    try:
        store = client(uri)
        run = _find_or_create(store, uri, recipe, key=record["key"], parent=parent_run_id)
    except StorageError:
        raise
    except Exception as error:  # MLflow, requests, urllib3 and SQLAlchemy each raise their own
        ids = record["runs"].get(masked(uri))
        if ids is None:
            raise StorageError(
                f"tracking store {masked(uri)} does not answer ({in_words(error)}); start it, "
                "correct its address (--tracking.uri of a training, --tracking-uri of "
                'jobs/models.py), or take the embedded store: ""'
            ) from None
        _warn("open the run; metrics wait on disk", error)
        return RunHandle(tracking_uri=uri, spool_uri=spool_uri, **ids)
    ids = {"experiment_id": run.info.experiment_id, "run_id": run.info.run_id}
    if record["runs"].get(masked(uri)) != ids:
        record["runs"][masked(uri)] = ids
        _write_record(folder, record)
    handle = RunHandle(tracking_uri=uri, spool_uri=spool_uri, **ids)
    try:
        _describe(store, run, recipe, data_fingerprint=data_fingerprint, started_from=started_from)
    except Exception as error:
        _warn("describe the run", error)
    send_spooled(uri, handle.run_id, spool_uri)
    return handle


def run_id_of(folder: str, tracking_uri: str) -> str:
    """Give MLflow's id of the run whose files are in a folder; "" where it was never tracked."""
    uri = storage.join(folder, _RECORD)
    if not storage.exists(uri):
        return ""
    ids = json.loads(storage.read_bytes(uri))["runs"].get(masked(tracking_uri), {})
    return str(ids.get("run_id", ""))


def log_metrics(handle: RunHandle, metrics: Mapping[str, float], *, step: int = 0) -> None:
    """Log metrics from the driver; when the store is away they wait in the spool."""
    from mlflow.entities import Metric  # noqa: PLC0415  mlflow is slow to import

    point = Point(
        time.time_ns() // 1_000_000, step, {name: float(value) for name, value in metrics.items()}
    )
    try:
        store = client(handle.tracking_uri)
        points = [Metric(name, value, point.time_ms, step) for name, value in point.values.items()]
        store.log_batch(handle.run_id, metrics=points)
    except Exception as error:
        _warn("log metrics; they wait on disk", error)
        _keep(handle, point)


def log_artifacts(handle: RunHandle, path: str | Path, *, folder: str = "") -> bool:
    """Log a file, or all files under a folder.

    Args:
        handle: the run.
        path: local file or folder.
        folder: folder among the run's artifacts; "" is their root.

    Returns:
        False when the store is away; the files are then still where they were.
    """
    try:
        store = client(handle.tracking_uri)
        if Path(path).is_dir():
            store.log_artifacts(handle.run_id, str(path), folder or None)
        else:
            store.log_artifact(handle.run_id, str(path), folder or None)
    except Exception as error:
        _warn(f"log {path}; start the run again to log it", error)
        return False
    return True


def finish(handle: RunHandle, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED") -> bool:
    """Send what waits and close the run; False when the store is away.

    Runs below it that are still open are closed as KILLED: their processes are gone.
    """
    left = send_spooled(handle.tracking_uri, handle.run_id, handle.spool_uri)
    try:
        store = client(handle.tracking_uri)
        store.set_terminated(handle.run_id, status)
        below = f"tags.`{_PARENT_TAG}` = '{handle.run_id}' and attributes.status = 'RUNNING'"
        for run in store.search_runs([handle.experiment_id], below):
            store.set_terminated(run.info.run_id, "KILLED")
    except Exception as error:
        _warn(f"close the run ({left} points wait); start the run again to do so", error)
        return False
    return left == 0


def _find_or_create(
    store: "MlflowClient", uri: str, recipe: Recipe, *, key: str, parent: str
) -> "Run":
    experiment_id = _experiment(store, uri, recipe.tracking.experiment)
    found = store.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
    if found:
        store.update_run(found[0].info.run_id, status="RUNNING")
        return found[0]
    tags = {KEY_TAG: key} | ({_PARENT_TAG: parent} if parent else {})
    return store.create_run(experiment_id, run_name=recipe.name, tags=tags)


def _experiment(store: "MlflowClient", uri: str, name: str) -> str:
    found = store.get_experiment_by_name(name)
    if found is None:
        database = sqlite_path(uri)
        # A server knows where its artifacts go; beside an SQLite file we say so, or MLflow would
        # take the folder that the process happens to be in.
        location = (database.parent / "mlartifacts" / name).as_uri() if database else None
        return str(store.create_experiment(name, artifact_location=location))
    if found.lifecycle_stage == "deleted":
        raise StorageError(
            f"MLflow experiment {name!r} was deleted in {masked(uri)}; restore it with "
            f"mlflow experiments restore --experiment-id {found.experiment_id}, or take another "
            "name: --tracking.experiment NAME"
        )
    return str(found.experiment_id)


def _describe(
    store: "MlflowClient",
    run: "Run",
    recipe: Recipe,
    *,
    data_fingerprint: str,
    started_from: str,
) -> None:
    from mlflow.entities import Param, RunTag  # noqa: PLC0415  mlflow is slow to import

    text = to_json(recipe)
    params = {name: _shown(value) for name, value in leaves(json.loads(text)).items()}
    known = run.data.params
    # Params cannot change; what a resume changed (the number of workers, say) becomes a tag.
    changed = [
        f"{name}: {known[name]} -> {value}"
        for name, value in params.items()
        if name in known and known[name] != value
    ]
    here = environment()
    tags = {
        "recipe_fingerprint": fingerprint(recipe),
        "data_fingerprint": data_fingerprint,
        "started_from": started_from,
        "git_commit": here.git_commit,
        "resumed_with": "; ".join(changed)[:5000],
        "version.python": here.python,
    } | {f"version.{name}": version for name, version in here.packages.items()}
    new = [Param(name, value) for name, value in params.items() if name not in known]
    for start in range(0, len(new), _PARAMS_PER_BATCH):
        store.log_batch(run.info.run_id, params=new[start : start + _PARAMS_PER_BATCH])
    store.log_batch(run.info.run_id, tags=[RunTag(k, v) for k, v in tags.items() if v])
    store.log_text(run.info.run_id, text, "recipe.json")
    store.log_text(run.info.run_id, requirements_here(), "requirements.txt")


def _keep(handle: RunHandle, point: Point) -> None:
    try:
        if storage.is_local(handle.spool_uri):
            folder = Path(storage.absolute(handle.spool_uri))
            new_spool(folder, run_id=handle.run_id, time_ms=point.time_ms).append([point])
        else:
            name = f"{handle.run_id}-{point.time_ms:013d}-driver.jsonl"
            uri = storage.join(handle.spool_uri, name)
            storage.write_bytes_atomic(uri, (json.dumps(point) + "\n").encode())
    except (OSError, StorageError) as error:
        _warn("keep metrics on disk", error)


def _read_record(folder: str) -> dict[str, Any]:
    uri = storage.join(folder, _RECORD)
    if storage.exists(uri):
        record: dict[str, Any] = json.loads(storage.read_bytes(uri))
        return record
    record = {"key": secrets.token_hex(16), "runs": {}}
    _write_record(folder, record)
    return record


def _write_record(folder: str, record: dict[str, Any]) -> None:
    uri = storage.join(folder, _RECORD)
    storage.write_bytes_atomic(uri, json.dumps(record, indent=1).encode())


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _warn(action: str, error: Exception) -> None:
    _log.warning("event=tracking_is_away could_not=%r reason=%r", action, in_words(error))
