"""A registered model served by `mlflow models serve` predicts masks for photos over HTTP."""

import base64
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image
from pycocotools import mask as mask_api

from pipeline.registry.predict import load_registered_model
from tests.object_stores import find_free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

_START_TIMEOUT_S = 150


@pytest.fixture
def server(registered_model, tmp_path):
    """Serve the champion as the model card says, and return its address."""
    port = find_free_port()
    bin_folder = str(Path(sys.executable).parent)
    env = os.environ | {
        "MLFLOW_TRACKING_URI": registered_model.handle.tracking_uri,
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
    }
    command = ["mlflow", "models", "serve", "-m", f"models:/{registered_model.name}@champion",
               "--env-manager", "local", "--port", str(port)]  # fmt: skip
    log = tmp_path / "serve.log"
    with (
        log.open("w") as stream,
        subprocess.Popen(
            command, env=env, cwd=tmp_path, stdout=stream, stderr=stream, start_new_session=True
        ) as process,
    ):
        address = f"http://127.0.0.1:{port}"
        try:
            _wait_until_ready(f"{address}/ping", process, log)
            yield address
        finally:
            os.killpg(process.pid, signal.SIGTERM)


def _wait_until_ready(address, process, log):
    end = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < end and process.poll() is None:
        try:
            requests.get(address, timeout=5).raise_for_status()
        except requests.RequestException:
            time.sleep(0.5)
        else:
            return
    pytest.fail(log.read_text()[-3000:])


def send(server, content):
    """Send a request and return the response, whatever its status."""
    return requests.post(f"{server}/invocations", json=content, timeout=60)


def test_the_server_predicts_masks_for_base64_photos(server, registered_model, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (72, 96, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    photo = base64.b64encode(buffer.getvalue()).decode()
    params = {"score_threshold": 0.0}

    response = send(server, {"inputs": [photo, photo], "params": params})
    assert response.status_code == 200, response.text
    rows = response.json()["predictions"]
    masks = [mask_api.decode(row["rle"]) for row in rows]
    assert len(masks) > 4
    assert {mask.shape for mask in masks} == {(72, 96)}
    assert any(mask.any() for mask in masks)
    uri = registered_model.handle.tracking_uri
    local = load_registered_model(f"models:/{registered_model.name}@champion", tracking=uri).model
    expected = local.predict([photo, photo], params=params).to_dict("records")
    for name in ("image_index", "category_name", "rle"):
        assert [row[name] for row in rows] == [row[name] for row in expected]
    scores = ([row["score"] for row in each] for each in (rows, expected))
    np.testing.assert_allclose(*scores, rtol=1e-5)

    response = send(server, {"inputs": [photo[:200]], "params": params})
    assert response.status_code >= 400
    assert "1 of 1 images cannot be predicted" in response.text
    response = send(server, {"inputs": [photo[:200], photo], "params": params})
    assert response.status_code == 200, response.text
    bad, *good = response.json()["predictions"]
    assert bad["error"].startswith("image 0: ")
    assert [row["rle"] for row in good] == [row["rle"] for row in rows if row["image_index"] == 0]

    # HTTP clients must not read files of the server.
    on_server = tmp_path / "photo.png"
    on_server.write_bytes(buffer.getvalue())
    response = send(server, {"inputs": [str(on_server), "/no/such/file"], "params": params})
    assert response.status_code >= 400
    assert "2 of 2 images cannot be predicted" in response.text
    assert response.text.count("a served model takes photos as base64") == 2
    assert "No such file" not in response.text
