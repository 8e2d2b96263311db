"""Keep exactly one MLflow run per training run: opened in the driver, reopened on resume.

    handle = open_run(recipe, data_fingerprint=manifest.fingerprint)
    log = MetricLog(handle.tracking_uri, handle.run_id, handle.spool_uri)   # in rank 0
    deliver_spools(handle.tracking_uri, handle.run_id, handle.spool_uri)
    log_artifacts(handle, "detections.json")
    finish(handle)

A random key in the run's folder links the two. It is written before the MLflow run is created, with
the key as a tag, so that a restart after a crash finds the same run, and a deleted folder starts a
new one.
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
from pipeline.tracking.environment import freeze_requirements, read_environment
from pipeline.tracking.metric_log import MetricLog, deliver_spools
from pipeline.tracking.spool import Point, create_spool
from pipeline.tracking.stores import (
    create_client,
    describe_moved_store,
    embedded_artifacts,
    format_error,
    redact,
    resolve_tracking_uri,
    sqlite_path,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

__all__ = [
    "MetricLog",
    "RunHandle",
    "deliver_spools",
    "finish",
    "log_artifacts",
    "log_metrics",
    "open_run",
    "read_run_id",
    "resolve_tracking_uri",
    "wait_for_store",
]

_log = logging.getLogger(__name__)

KEY_TAG = "bsm.key"
_PARENT_TAG = "mlflow.parentRunId"
_RECORD = "tracking.json"
_PARAMS_PER_BATCH = 100
_PAUSE_S = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RunHandle:
    """Identifies a run to other processes; plain strings only."""

    # May contain a password, which must not appear in logs.
    tracking_uri: str = field(repr=False)
    """Full URI, also of the embedded store."""
    experiment_id: str
    run_id: str
    spool_uri: str
    """Folder of metrics that wait while the store is unreachable."""

    @property
    def url(self) -> str:
        """URL of the run's page, or the command that serves it."""
        if sqlite_path(self.tracking_uri) is not None:
            return f"mlflow ui --backend-store-uri {self.tracking_uri}"
        page = f"{self.tracking_uri.rstrip('/')}/#/experiments/{self.experiment_id}"
        return redact(f"{page}/runs/{self.run_id}")


def open_run(
    recipe: Recipe,
    *,
    data_fingerprint: str = "",
    started_from: str = "",
    parent_run_id: str = "",
) -> RunHandle:
    """Open the MLflow run of a recipe, or reopen the one of an earlier attempt.

    An unreachable store is an error on the first attempt, when the URI may be wrong; a run that was
    tracked before continues, and its metrics wait on disk.

    Args:
        recipe: the recipe to log.
        data_fingerprint: of the training split.
        started_from: the registered version of the start weights, models:/NAME/VERSION.
        parent_run_id: MLflow id of the parent run.

    Raises:
        StorageError: the store is unreachable and the run was never tracked there.
    """
    uri = resolve_tracking_uri(recipe.tracking.uri, storage_uri=recipe.storage)
    folder = storage.absolute(storage.join(recipe.storage, recipe.name))
    spool_uri = storage.join(folder, "spool")
    record = _read_record(folder)
    try:
        store = create_client(uri)
        run = _find_or_create(store, uri, recipe, key=record["key"], parent=parent_run_id)
    except StorageError:
        raise
    except Exception as error:  # MLflow, requests, urllib3 and SQLAlchemy share no base class
        ids = record["runs"].get(redact(uri))
        if ids is None:
            raise StorageError(
                f"tracking store {redact(uri)} does not answer ({format_error(error)}); start it, "
                "correct its address (--tracking.uri for training, --tracking-uri for "
                'jobs/models.py), or use the embedded store: ""'
            ) from None
        _warn("open the run; metrics wait on disk", error)
        return RunHandle(tracking_uri=uri, spool_uri=spool_uri, **ids)
    ids = {"experiment_id": run.info.experiment_id, "run_id": run.info.run_id}
    if record["runs"].get(redact(uri)) != ids:
        record["runs"][redact(uri)] = ids
        _write_record(folder, record)
    handle = RunHandle(tracking_uri=uri, spool_uri=spool_uri, **ids)
    try:
        _describe(store, run, recipe, data_fingerprint=data_fingerprint, started_from=started_from)
    except Exception as error:
        _warn("describe the run", error)
    deliver_spools(uri, handle.run_id, spool_uri)
    return handle


def read_run_id(folder: str, tracking_uri: str) -> str:
    """Read the MLflow run id recorded in a run's folder; "" if it was never tracked there."""
    uri = storage.join(folder, _RECORD)
    if not storage.exists(uri):
        return ""
    ids = json.loads(storage.read_bytes(uri))["runs"].get(redact(tracking_uri), {})
    return str(ids.get("run_id", ""))


def log_metrics(handle: RunHandle, metrics: Mapping[str, float], *, step: int = 0) -> None:
    """Log metrics from the driver; if the store is unreachable, they wait in the spool."""
    from mlflow.entities import Metric  # noqa: PLC0415  mlflow is slow to import

    point = Point(
        time.time_ns() // 1_000_000, step, {name: float(value) for name, value in metrics.items()}
    )
    try:
        store = create_client(handle.tracking_uri)
        points = [Metric(name, value, point.time_ms, step) for name, value in point.values.items()]
        store.log_batch(handle.run_id, metrics=points)
    except Exception as error:
        _warn("log metrics; they wait on disk", error)
        _spool_point(handle, point)


def wait_for_store(handle: RunHandle, *, seconds: float = 60.0) -> bool:
    """Wait for a store that is away: the end of a run logs and registers what is not sent later.

    Returns:
        False if it is still away after so many seconds.
    """
    until, is_told = time.monotonic() + seconds, False
    while True:
        try:
            create_client(handle.tracking_uri).get_run(handle.run_id)
        except Exception as error:
            if not is_told:
                _warn(f"log the results; waiting up to {seconds:.0f} s for it", error)
            is_told = True
        else:
            return True
        if time.monotonic() > until:
            return False
        time.sleep(_PAUSE_S)


def log_artifacts(handle: RunHandle, path: str | Path, *, folder: str = "") -> bool:
    """Log a file, or all files under a folder.

    Args:
        handle: the run.
        path: local file or folder.
        folder: folder among the run's artifacts; "" is the root.

    Returns:
        False if the store is unreachable; the files then stay where they are.
    """
    try:
        store = create_client(handle.tracking_uri)
        if Path(path).is_dir():
            store.log_artifacts(handle.run_id, str(path), folder or None)
        else:
            store.log_artifact(handle.run_id, str(path), folder or None)
    except Exception as error:
        _warn(f"log {path}; start the run again to log it", error)
        return False
    return True


def finish(handle: RunHandle, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED") -> bool:
    """Send spooled metrics and close the run; return False if the store is unreachable.

    Child runs that are still open are closed as KILLED: their processes have ended. A run that was
    closed as KILLED stays so: a sweep stops a trial's workers, which the trial sees as a failure.
    """
    left = deliver_spools(handle.tracking_uri, handle.run_id, handle.spool_uri)
    try:
        store = create_client(handle.tracking_uri)
        if status != "FAILED" or store.get_run(handle.run_id).info.status != "KILLED":
            store.set_terminated(handle.run_id, status)
        open_children = (
            f"tags.`{_PARENT_TAG}` = '{handle.run_id}' and attributes.status = 'RUNNING'"
        )
        for run in store.search_runs([handle.experiment_id], open_children):
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
        location = embedded_artifacts(uri, name)
        return str(store.create_experiment(name, artifact_location=location))
    if moved := describe_moved_store(found.artifact_location, tracking_uri=uri):
        raise StorageError(f"{redact(uri)}: {moved}")
    if found.lifecycle_stage == "deleted":
        raise StorageError(
            f"MLflow experiment {name!r} was deleted in {redact(uri)}; restore it with "
            f"mlflow experiments restore --experiment-id {found.experiment_id}, or use another "
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
    params = {name: _to_text(value) for name, value in leaves(json.loads(text)).items()}
    known = run.data.params
    # MLflow params are immutable; values changed on resume (number of workers) become a tag.
    changed = [
        f"{name}: {known[name]} -> {value}"
        for name, value in params.items()
        if name in known and known[name] != value
    ]
    here = read_environment()
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
    store.log_text(run.info.run_id, freeze_requirements(), "requirements.txt")


def _spool_point(handle: RunHandle, point: Point) -> None:
    try:
        if storage.is_local(handle.spool_uri):
            folder = Path(storage.absolute(handle.spool_uri))
            create_spool(folder, run_id=handle.run_id, time_ms=point.time_ms).append([point])
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


def _to_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _warn(action: str, error: Exception) -> None:
    _log.warning("event=tracking_is_away could_not=%r reason=%r", action, format_error(error))
