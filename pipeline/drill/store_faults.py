"""Faults of the object store that holds the run, and of MLflow."""

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from pipeline.drill.fault_proxy import Fault, s3_with_faults
from pipeline.drill.process_faults import AFTER_SAVED
from pipeline.drill.scene import (
    LONG_STEPS,
    STEP,
    STEPS,
    Outcome,
    Scene,
    copy_results,
    read_result,
    resume,
)
from pipeline.drill.tracking_server import TrackingServer, tracking_server
from pipeline.errors import DrillError
from pipeline.recipe import Recipe

_AWAY_S = 60.0
_START_TIMEOUT_S = 180.0


def slow_store(scene: Scene) -> Outcome:
    """Go on, more slowly, while each request takes half a second longer."""
    with s3_with_faults() as (proxy, variables):
        remote = replace(scene, environment=scene.environment | variables)
        recipe = remote.recipe(storage_uri="s3://bucket/runs")
        with remote.train(recipe) as job:
            job.wait_for(AFTER_SAVED)
            proxy.fault = "slow"
            return _copy_results(remote, Outcome("nothing", None, read_result(job)))


def unavailable_store(scene: Scene) -> Outcome:
    """Bridge a minute of answers 503."""
    return _disturb(scene, "unavailable")


def expire_credentials(scene: Scene) -> Outcome:
    """Say that the credentials have expired, and go on with new ones."""
    return _disturb(scene, "expired")


def lose_store(scene: Scene) -> Outcome:
    """Say that the store is gone while a checkpoint is written, and go on once it is back."""
    with s3_with_faults() as (proxy, variables):
        remote = replace(scene, environment=scene.environment | variables)
        recipe = remote.recipe(storage_uri="s3://bucket/runs")
        with remote.train(recipe) as job:
            proxy.gone_at = "step-00000020/checkpoint.pt"
            if not proxy.faulted.wait(_START_TIMEOUT_S):
                raise DrillError(f"no checkpoint of step 20 was written:\n{job.tail}")
            fault_s = time.monotonic()
            code = job.wait()
            saw = job.wait_for("StorageError|no connection").text
        proxy.gone_at = proxy.fault = ""
        if code == 0:
            raise DrillError(f"the job did not fail:\n{job.tail}")
        return _copy_results(remote, resume(remote, recipe, saw, fault_s))


def lose_tracking(scene: Scene) -> Outcome:
    """Train on without MLflow, keep the metrics, and send them once it is back."""
    with tracking_server(scene.folder / "mlflow") as server:
        recipe = _tracked(scene.recipe(), server)
        with scene.train(recipe) as job:
            job.wait_for(AFTER_SAVED)
            server.kill()
            read_result(job)
            saw = job.wait_for("tracking_is_away").text
        server.start()
        _, result = scene.finish(recipe)
        _check_metrics(server, steps=STEPS)
        return Outcome(saw, None, result)


def _disturb(scene: Scene, fault: Fault) -> Outcome:
    """Disturb all requests for a minute, or until the job has failed, and then resume it."""
    with s3_with_faults() as (proxy, variables):
        remote = replace(scene, environment=scene.environment | variables)
        recipe = remote.recipe(storage_uri="s3://bucket/runs")
        with remote.train(recipe) as job:
            job.wait_for(AFTER_SAVED)
            proxy.fault, fault_s = fault, time.monotonic()
            while job.process.poll() is None and time.monotonic() < fault_s + _AWAY_S:
                time.sleep(0.2)
            proxy.fault = ""
            if job.wait() == 0:
                result = read_result(job)
                return _copy_results(remote, Outcome("nothing", None, result))
            saw = job.wait_for("StorageError").text
        return _copy_results(remote, resume(remote, recipe, saw, fault_s))


def _copy_results(scene: Scene, outcome: Outcome) -> Outcome:
    with _variables(scene.environment):
        return copy_results(scene, outcome)


@contextmanager
def _variables(environment: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def interrupt_tracking(scene: Scene) -> Outcome:
    """Train on while MLflow is away for a minute, and send it the metrics once it is back."""
    with tracking_server(scene.folder / "mlflow") as server:
        recipe = _tracked(scene.long_recipe(), server)
        with scene.train(recipe) as job:
            job.wait_for(AFTER_SAVED)
            server.kill()
            end_s = time.monotonic() + _AWAY_S
            # A fast machine would be finished after a minute.
            while time.monotonic() < end_s and not job.find(STEP.format(step=LONG_STEPS * 3 // 4)):
                time.sleep(0.2)
            # A busy machine would train the rest before the server has started.
            job.send(signal.SIGSTOP)
            server.start()
            job.send(signal.SIGCONT)
            result = read_result(job)
            saw = job.wait_for("tracking_is_away").text
            job.wait_for("tracking_is_back")
        _check_metrics(server, steps=LONG_STEPS)
        return Outcome(saw, None, result, is_long=True)


def _tracked(recipe: Recipe, server: TrackingServer) -> Recipe:
    return replace(recipe, tracking=replace(recipe.tracking, uri=server.uri))


def _check_metrics(server: TrackingServer, *, steps: int) -> None:
    """Check that MLflow has the loss of every step once."""
    rows = server.query("select step from metrics where key = 'loss'")
    if sorted(str(step) for (step,) in rows) != sorted(map(str, range(1, steps + 1))):
        raise DrillError(f"MLflow has the losses of {len(rows)} steps, not once of {steps}")
