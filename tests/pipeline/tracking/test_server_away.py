"""A real MLflow server is killed during a run, and restarted."""

import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from mlflow import MlflowClient

from pipeline.drill.tracking_server import TrackingServer
from pipeline.recipe import TrackingConfig
from pipeline.registry.predict import load_registered_model
from pipeline.registry.provenance import EvaluationRecord
from pipeline.registry.register import register
from pipeline.tracking.runs import (
    MetricLog,
    deliver_spools,
    finish,
    log_metrics,
    open_run,
    wait_for_store,
)

pytestmark = pytest.mark.slow


@contextmanager
def running(server):
    server.start()
    try:
        yield
    finally:
        server.kill()


def steps(store, run_id, name):
    return [metric.step for metric in store.get_metric_history(run_id, name)]


@pytest.mark.timeout(600)
def test_metrics_survive_a_killed_server(tmp_path, registered_model):
    server = TrackingServer(tmp_path / "server")
    uri = server.uri
    recipe = replace(
        registered_model.recipe,
        storage=str(tmp_path / "runs"),
        tracking=TrackingConfig(uri=uri),
    )
    with running(server):
        handle = open_run(recipe)
        store = MlflowClient(uri)
        log = MetricLog(handle.tracking_uri, handle.run_id, handle.spool_uri, pause_s=0.1)
        for step in range(20):
            log.log(step, {"loss": float(step), "nan": float("nan")})
        while len(steps(store, handle.run_id, "nan")) < 20:
            time.sleep(0.2)

    # The server is down: neither steps, nor the worker's end, nor the driver wait for it.
    started = time.monotonic()
    for step in range(20, 40):
        log.log(step, {"loss": float(step)})
    assert time.monotonic() - started < 5
    # The answer to the last batch of the first twenty can be lost with the server.
    assert log.close(timeout_s=10) in (20, 40)
    log_metrics(handle, {"mask_ap": 0.3}, step=40)
    assert not finish(handle)
    assert time.monotonic() - started < 60

    # A second attempt of the run, with the server still down, repeats some steps.
    assert open_run(recipe) == handle
    second = MetricLog(handle.tracking_uri, handle.run_id, handle.spool_uri, pause_s=0.1)
    for step in range(30, 50):
        second.log(step, {"loss": float(step)})
    time.sleep(1)

    # The end of a run waits a while: here the server comes back too late, then in time.
    assert not wait_for_store(handle, seconds=1)
    coming = threading.Timer(3, server.start)
    coming.start()
    assert wait_for_store(handle, seconds=240)
    coming.join()
    try:
        assert second.close(timeout_s=60) == 0
        assert deliver_spools(handle.tracking_uri, handle.run_id, handle.spool_uri) == 0
        assert finish(handle)
        history = store.get_metric_history(handle.run_id, "loss")
        assert sorted(metric.step for metric in history) == list(range(50))
        assert all(metric.value == metric.step for metric in history)
        run = store.get_run(handle.run_id)
        assert run.data.metrics["mask_ap"] == 0.3
        assert run.info.status == "FINISHED"
        assert len(store.search_runs([handle.experiment_id])) == 1

        # The server's registry also stores the model and returns it.
        version = register(
            handle,
            name="served",
            weights_path=registered_model.weights,
            recipe=recipe,
            categories=registered_model.categories,
            evaluation=EvaluationRecord(evaluated_on="val", metrics={"boundary_ap": 0.3}),
        )
        assert version.is_champion
        registered = load_registered_model("models:/served@champion", tracking=uri)
        assert registered.uri == version.uri == "models:/served/1"
        photo = np.zeros((64, 64, 3), np.uint8)
        rows = registered.model.predict([photo], params={"score_threshold": 0.0})
        assert len(rows) > 0
    finally:
        server.kill()
