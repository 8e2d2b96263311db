"""A server on Ray keeps answering while its alias moves to another version."""

import socket
import threading
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import requests
import torch

from bsm.build import build_model
from bsm.checkpoints.weights import save_weights
from pipeline.errors import RecipeError, RegistryError, SetupError
from pipeline.registry.provenance import EvaluationRecord
from pipeline.registry.register import register
from pipeline.server.options import ServeOptions
from pipeline.server.serve import Server, start_server
from pipeline.tracking.runs import open_run
from tests.object_stores import find_free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

NAME = "moving"
BEARER = "0123456789abcdef-secret"


def register_version(registered_model, folder, *, seed: int, score: float) -> None:
    """Register random weights; a better score makes the version the champion."""
    torch.manual_seed(seed)
    weights = folder / f"{seed}.safetensors"
    save_weights(build_model(registered_model.recipe.model), weights)
    register(
        open_run(registered_model.recipe),
        name=NAME,
        weights_path=weights,
        recipe=registered_model.recipe,
        categories=registered_model.categories,
        evaluation=EvaluationRecord(evaluated_on="val, 9 images", metrics={"boundary_ap": score}),
    )


@pytest.fixture(scope="module")
def server(one_ray, registered_model, tmp_path_factory):
    """Serve the champion of a model, with a token."""
    from ray import serve

    folder = tmp_path_factory.mktemp("serve")
    register_version(registered_model, folder, seed=1, score=0.1)
    options = ServeOptions(
        port=find_free_port(), cpus=0, check_alias_s=0.3, batch_wait_ms=5, max_bytes=3_000_000
    )
    started = start_server(
        [f"models:/{NAME}@champion"],
        options,
        tracking=registered_model.handle.tracking_uri,
        token=BEARER,
    )
    photo = cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (48, 64, 3)))[1]
    yield SimpleNamespace(address=started.address, photo=photo.tobytes(), folder=folder)
    started.stop()
    serve.shutdown()


def predict(server, *, token=BEARER, photo=None, **fields):
    return requests.post(
        f"{server.address}/predict",
        files={"photo": photo or server.photo},
        data={"score_threshold": "0"} | fields,
        headers={"Authorization": f"Bearer {token}"},
        timeout=60,
    )


def test_the_alias_moves_under_load_without_a_dropped_request(server, registered_model):
    answers, stop = [], threading.Event()

    def ask():
        while not stop.is_set():
            response = predict(server)
            answers.append((response.status_code, response.json().get("model")))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        register_version(registered_model, server.folder, seed=2, score=0.9)
        end = time.monotonic() + 90
        while time.monotonic() < end and f"models:/{NAME}/2" not in {name for _, name in answers}:
            stop.wait(0.1)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert {status for status, _ in answers} == {200}
    versions = [name for _, name in answers]
    assert set(versions) == {f"models:/{NAME}/1", f"models:/{NAME}/2"}
    metrics = requests.get(
        f"{server.address}/metrics", headers={"Authorization": f"Bearer {BEARER}"}, timeout=60
    ).text
    assert f'bsm_swaps_total{{model="models:/{NAME}@champion",outcome="swapped"}} 1.0' in metrics
    batches = float(metrics.partition("bsm_batch_photos_count ")[2].partition("\n")[0])
    assert batches < len(answers), "three clients at once never shared a batch"


def test_the_server_refuses_what_it_should(server):
    assert predict(server, token=BEARER[::-1]).status_code == 401
    response = predict(server, photo=bytes(20_000_000))
    assert response.status_code == 413
    assert "a photo may have 3000000" in response.json()["error"]
    assert requests.get(f"{server.address}/ready", timeout=60).json()["ready"]
    assert "</html>" in requests.get(server.address, timeout=60).text


def test_a_server_whose_ray_got_the_same_signal_stops_at_once(monkeypatch, caplog):
    """`timeout` and some schedulers send SIGTERM to the whole process group."""
    from ray import serve

    answered = threading.Event()
    gone = SimpleNamespace(gcs_address=f"127.0.0.1:{find_free_port()}")
    monkeypatch.setattr(serve, "delete", lambda _: answered.wait(60))
    monkeypatch.setattr("ray.get_runtime_context", lambda: gone)
    try:
        Server("http://127.0.0.1:9", {}).stop()
        assert not answered.is_set()
    finally:
        answered.set()
    assert "Ray has stopped already" in caplog.text


def test_what_cannot_be_served_is_an_error_before_ray_starts(registered_model):
    uri = registered_model.handle.tracking_uri
    champion = [f"models:/{registered_model.name}@champion"]
    options = ServeOptions(port=find_free_port())
    with pytest.raises(RecipeError, match=r"has 5 characters; a token needs at least 16"):
        start_server(champion, options, tracking=uri, token="x" * 5)
    with pytest.raises(RegistryError, match=r"models:/nothing@champion is not in"):
        start_server(["models:/nothing@champion"], options, tracking=uri, token="")
    with pytest.raises(RegistryError, match="must be models:/NAME@ALIAS"):
        start_server(["tiny"], options, tracking=uri, token="")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        options = ServeOptions(port=taken.getsockname()[1])
        with pytest.raises(SetupError, match="choose another port: --port PORT"):
            # Before the registry is asked, which takes seconds.
            start_server(["models:/nothing@champion"], options, tracking="", token="")
