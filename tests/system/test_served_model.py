"""A registered model behind `mlflow models serve`: a photo goes in over HTTP, masks come out."""

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

from pipeline.registry.predict import pull
from tests.object_stores import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

_STARTS_S = 150


@pytest.fixture
def server(registered_model, tmp_path):
    """Give the address of the champion, served as the model card says."""
    port = free_port()
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
            _wait(f"{address}/ping", process, log)
            yield address
        finally:
            os.killpg(process.pid, signal.SIGTERM)


def _wait(address, process, log):
    end = time.monotonic() + _STARTS_S
    while time.monotonic() < end and process.poll() is None:
        try:
            requests.get(address, timeout=5).raise_for_status()
        except requests.RequestException:
            time.sleep(0.5)
        else:
            return
    pytest.fail(log.read_text()[-3000:])


def ask(server, content):
    """Give what the server answers, whatever the status."""
    return requests.post(f"{server}/invocations", json=content, timeout=60)


def test_a_base64_photo_is_answered_with_masks(server, registered_model, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (72, 96, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    photo = base64.b64encode(buffer.getvalue()).decode()
    params = {"score_threshold": 0.0}

    answer = ask(server, {"inputs": [photo, photo], "params": params})
    assert answer.status_code == 200, answer.text
    rows = answer.json()["predictions"]
    masks = [mask_api.decode(row["rle"]) for row in rows]
    assert len(masks) > 4
    assert {mask.shape for mask in masks} == {(72, 96)}
    assert any(mask.any() for mask in masks)
    uri = registered_model.handle.tracking_uri
    here = pull(f"models:/{registered_model.name}@champion", tracking=uri).model
    expected = here.predict([photo, photo], params=params).to_dict("records")
    for name in ("image_index", "category_name", "rle"):
        assert [row[name] for row in rows] == [row[name] for row in expected]
    scores = ([row["score"] for row in each] for each in (rows, expected))
    np.testing.assert_allclose(*scores, rtol=1e-5)

    answer = ask(server, {"inputs": [photo[:200]], "params": params})
    assert answer.status_code >= 400
    assert "1 of 1 images cannot be read" in answer.text

    # A caller from elsewhere has no business with the files of the server.
    there = tmp_path / "there.png"
    there.write_bytes(buffer.getvalue())
    answer = ask(server, {"inputs": [str(there), "/no/such/file"], "params": params})
    assert answer.status_code >= 400
    assert "2 of 2 images cannot be read" in answer.text
    assert answer.text.count("a served model takes photos as base64") == 2
    assert "No such file" not in answer.text
