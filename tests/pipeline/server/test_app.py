"""The server answers photos with masks, and every bad request with a sentence."""

import base64
import io
import json

import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from pycocotools import mask as mask_api

from pipeline.server.answers import to_polygons
from pipeline.server.app import build_app
from pipeline.server.live_model import LiveModel
from tests.pipeline.server.direct_backend import OPTIONS, DirectBackend

BEARER = "a token that is long enough"


def encode(pixels, ending=".png") -> bytes:
    return cv2.imencode(ending, pixels[..., ::-1])[1].tobytes()


PIXELS = np.random.default_rng(0).integers(0, 255, (72, 96, 3), dtype=np.uint8)
PHOTO = encode(PIXELS)


@pytest.fixture(scope="module")
def model(registered_model):
    name = f"models:/{registered_model.name}@champion"
    uri = registered_model.handle.tracking_uri
    return LiveModel(name, registry=uri, on_swap=lambda _: None)


@pytest.fixture
def backend(model):
    return DirectBackend(model)


@pytest.fixture
def client(backend):
    return TestClient(build_app(backend), raise_server_exceptions=False)


def send(client, photo=PHOTO, **fields):
    return client.post("/predict", files={"photo": ("x", photo)}, data=fields)


def send_json(client, **fields):
    return client.post("/predict", json=fields)


def test_a_form_and_json_get_the_detections_of_the_model(client, model):
    answer = send(client, score_threshold="0").json()
    expected = model.current.predictor.predict_photo(PIXELS)
    assert answer["model"] == "models:/tiny/1"
    assert answer["image"] == {"width": 96, "height": 72}
    assert [each["segmentation"] for each in answer["detections"]] == [r["rle"] for r in expected]
    assert [each["category_name"] for each in answer["detections"]] == [
        row["category_name"] for row in expected
    ]
    assert {each["category_id"] for each in answer["detections"]} <= {7, 8, 9}
    for found, row in zip(answer["detections"], expected, strict=True):
        x, y, width, height = found["bbox"]
        assert [x, y, x + width, y + height] == pytest.approx(row["box_xyxy"])
    text = base64.b64encode(PHOTO).decode()
    assert send_json(client, photo=text, score_threshold=0).json() == answer


def test_detections_below_the_threshold_are_left_out(client):
    scores = [each["score"] for each in send(client, score_threshold="0").json()["detections"]]
    limit = sorted(scores)[2]
    left = send(client, score_threshold=str(limit)).json()["detections"]
    assert [each["score"] for each in left] == [each for each in scores if each >= limit]


def test_polygons_fill_to_the_mask():
    mask = np.zeros((40, 50), np.uint8)
    cv2.ellipse(mask, (20, 18), (13, 7), 20, 0, 360, 1, -1)
    mask[30, 40] = mask[33:36, 5:30] = mask[0, 49] = 1
    rle = mask_api.encode(np.asfortranarray(mask))
    polygons = to_polygons({"size": [40, 50], "counts": rle["counts"].decode()})
    assert len(polygons) == 4
    filled = mask_api.decode(mask_api.merge(mask_api.frPyObjects(polygons, 40, 50)))
    np.testing.assert_array_equal(filled, mask)


def test_polygons_and_a_picture_are_answered(client):
    answer = send(client, format="polygons", score_threshold="0").json()
    assert all(isinstance(each["segmentation"], list) for each in answer["detections"])
    response = send(client, format="png", score_threshold="0")
    assert response.headers["content-type"] == "image/png"
    assert response.headers["x-model"] == "models:/tiny/1"
    drawn = np.asarray(Image.open(io.BytesIO(response.content)))
    assert drawn.shape == PIXELS.shape
    assert (drawn != PIXELS).any()
    # Without detections the picture is the photo.
    nothing = send(client, format="png", score_threshold="1").content
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(nothing))), PIXELS)


def test_what_decoding_changed_is_said(client):
    alpha = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 9, np.uint8)])
    (notice,) = send(client, cv2.imencode(".png", alpha)[1].tobytes()).json()["notices"]
    assert "not opaque" in notice


JPEG = encode(PIXELS, ".jpg")
BOMB = encode(np.zeros((400, 400, 3), np.uint8))
BAD_FORMS = {
    "empty file": ((b"",), {}, 422, "the file is empty"),
    "text": ((b"hello world, this is no photo",), {}, 422, "not an image file"),
    "gif": ((b"GIF89a" + bytes(50),), {}, 422, "send a complete JPEG, PNG"),
    "weights": ((b"PK\x03\x04" + bytes(200),), {}, 422, "photo: "),
    "truncated JPEG": ((JPEG[: len(JPEG) // 2],), {}, 422, "truncated"),
    "truncated PNG": ((PHOTO[:2000],), {}, 422, "cut off after 2000 bytes"),
    "bytes": ((PHOTO + bytes(60_000),), {}, 413, "a photo may have 40000"),
    "pixels": ((BOMB,), {}, 413, "400 x 400 pixels, the limit is 20000"),
    "threshold": ((PHOTO,), {"score_threshold": "1.5"}, 422, "less than or equal to 1, got '1.5'"),
    "number": ((PHOTO,), {"score_threshold": "high"}, 422, "valid number"),
    "nan": ((PHOTO,), {"score_threshold": "nan"}, 422, "score_threshold: "),
    "format": ((PHOTO,), {"format": "gif"}, 422, "'rle', 'polygons' or 'png', got 'gif'"),
    "field": ((PHOTO,), {"fromat": "rle"}, 422, "perhaps you meant format"),
    "model": ((PHOTO,), {"model": "models:/tiny@champoin"}, 422, "perhaps you meant models:/tiny@"),
    "two": ((PHOTO,), {"format": "x", "score_threshold": "2"}, 422, "; format: input should be"),
}


@pytest.mark.parametrize("name", BAD_FORMS)
def test_a_bad_form_is_refused_with_a_sentence(client, name):
    (photo,), fields, status, text = BAD_FORMS[name]
    response = send(client, photo, **fields)
    assert response.status_code == status, response.text
    assert text in response.json()["error"]


BASE64 = base64.b64encode(PHOTO).decode()
BAD_BODIES = {
    "empty": (b"", 400, "the body is empty"),
    "json": (b'{"photo": ', 400, "the body is not JSON"),
    "deep": (b"[" * 100_000, 413, "a photo may have"),
    "deeper": (b"[" * 50_000, 400, "the body is not JSON"),
    "deep enough to parse": (b"[" * 2_000 + b"]" * 2_000, 400, "the body is not JSON"),
    "values": (b"[" + b"{}," * 9_000 + b"1]", 400, "it has more than 4096 values"),
    "bytes": (b"\xff\xfe\x00", 400, "the body is not JSON"),
    "list": (b"[1]", 422, "the body is a list"),
    "missing": (b"{}", 422, "photo: missing"),
    "null": (b'{"photo": null}', 422, "photo: missing"),
    "number": (b'{"photo": 7}', 422, "photo: it is a int"),
    "base64": (b'{"photo": "!!!!"}', 422, "it is not base64"),
    "padding": (json.dumps({"photo": BASE64[:-3]}).encode(), 422, "it is not base64"),
    "path": (b'{"photo": "/etc/passwd"}', 422, "photo: "),
    "path of a photo": (b'{"photo": "../photo.jpg"}', 422, "paths and URLs are not read"),
    "file": (b'{"photo": "file:///etc/passwd"}', 422, "paths and URLs are not read"),
    "url": (b'{"photo": "https://example.com/a.jpg"}', 422, "paths and URLs are not read"),
    "field": (json.dumps({"photo": BASE64, "path": "x"}).encode(), 422, "'path' is no field"),
    "infinity": (json.dumps({"photo": BASE64, "score_threshold": 1e999}).encode(), 422, "score"),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_bad_body_is_refused_with_a_sentence(client, name):
    body, status, text = BAD_BODIES[name]
    response = client.post("/predict", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == status, response.text
    assert text in response.json()["error"]


@pytest.mark.parametrize(
    ("kind", "body", "status", "text"),
    [
        ("text/plain", b"x", 415, "content type 'text/plain'"),
        ("image/jpeg", JPEG, 415, "send a form"),
        ("", b"", 415, "content type 'none'"),
        ("multipart/form-data", b"x", 400, "Missing boundary"),
        ("multipart/form-data; boundary=a; charset=a\0b", b"x", 400, "null character"),
        ("multipart/form-data; boundary=a", b"garbage", 400, "the form"),
        ("multipart/form-data; boundary=a", b"", 400, "the form is empty"),
    ],
)
def test_other_content_is_refused_with_a_sentence(client, kind, body, status, text):
    headers = {"Content-Type": kind} if kind else {}
    response = client.post("/predict", content=body, headers=headers)
    assert (response.status_code, response.status_code) == (status, status), response.text
    assert text in response.json()["error"]


def test_a_photo_as_text_or_twice_is_refused(client):
    response = client.post("/predict", files={"photo": (None, "/etc/passwd")})
    assert response.status_code == 422
    assert "upload the file itself" in response.json()["error"]
    twice = [("photo", ("a", PHOTO)), ("photo", ("b", PHOTO))]
    response = client.post("/predict", files=twice)
    assert response.status_code == 400
    assert "send one file" in response.json()["error"]


def test_an_endless_body_is_cut_at_the_limit(client):
    sent = 0

    def endless():
        nonlocal sent
        while True:
            sent += 1000
            if sent > 10 * OPTIONS.max_bytes:
                return
            yield b"x" * 1000

    response = client.post(
        "/predict", content=endless(), headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 413
    assert "send a smaller one" in response.json()["error"]


def test_unknown_paths_and_methods_are_refused(client):
    for method, path, status in (("GET", "/predict", 405), ("GET", "/nothing", 404)):
        response = client.request(method, path)
        assert response.status_code == status
        assert "the API is in /docs" in response.json()["error"]
    assert client.get("/page/../app.py").status_code == 404
    assert client.get("/page/%2e%2e/app.py").status_code == 404


def test_a_full_queue_is_refused_and_not_ready(client, backend):
    assert client.get("/ready").json() == {
        "ready": True, "waiting": 0, "models": {"models:/tiny@champion": "models:/tiny/1"}
    }  # fmt: skip
    backend.metrics.waiting.set(OPTIONS.max_waiting)
    response = send(client)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert client.get("/ready").status_code == 503
    assert client.get("/health").status_code == 200


def test_too_little_memory_is_the_photos_fault_and_a_bug_is_not(client, backend):
    backend.error = MemoryError("cannot allocate 9 GB")
    response = send(client)
    assert response.status_code == 413
    assert "96 x 72 pixels: not enough memory" in response.json()["error"]
    backend.error = ValueError("secret detail")
    response = send(client)
    assert response.status_code == 500
    assert "secret" not in response.text
    assert client.get("/ready").json()["waiting"] == 0


def test_metrics_count_answers_and_detections(client):
    found = len(send(client, score_threshold="0").json()["detections"])
    send(client, b"no photo")
    client.get("/some/path")
    text = client.get("/metrics").text
    assert 'bsm_requests_total{path="/predict",status="200"} 1.0' in text
    assert 'bsm_requests_total{path="/predict",status="422"} 1.0' in text
    assert 'bsm_requests_total{path="other",status="404"} 1.0' in text
    assert f"bsm_detections_total {found}.0" in text
    assert "bsm_predict_seconds_count 1.0" in text
    assert 'bsm_model_version{model="models:/tiny@champion"} 1.0' in text


def test_a_token_guards_predictions_but_not_the_page(model, caplog):
    client = TestClient(build_app(DirectBackend(model, token=BEARER)))
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {BEARER}"}):
        for path in ("/models", "/metrics"):
            assert client.get(path, headers=headers).status_code == 401
        response = client.post("/predict", files={"photo": PHOTO}, headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
    right = {"Authorization": f"Bearer {BEARER}"}
    assert client.post("/predict", files={"photo": PHOTO}, headers=right).status_code == 200
    for path in ("/", "/docs", "/health", "/ready", "/openapi.json"):
        assert client.get(path).status_code == 200
    assert BEARER not in caplog.text


def test_the_api_describes_both_kinds_of_body(client):
    content = client.get("/openapi.json").json()
    body = content["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert set(body) == {"multipart/form-data", "application/json"}
    for kind in body.values():
        assert set(kind["schema"]["properties"]) == {"photo", "score_threshold", "format", "model"}
    assert {"401", "413", "415", "422"} <= set(content["paths"]["/predict"]["post"]["responses"])


def test_photos_of_equal_size_share_a_forward_pass_and_keep_their_order(model):
    predictor = model.current.predictor
    rng = np.random.default_rng(3)
    sizes = [(72, 96), (50, 60), (72, 96)]
    photos = [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in sizes]
    together = predictor.predict_photos(photos)
    for rows, photo in zip(together, photos, strict=True):
        alone = predictor.predict_photo(photo)
        assert [row["category_index"] for row in rows] == [row["category_index"] for row in alone]
        for a, b in zip(rows, alone, strict=True):
            assert a["rle"]["size"] == list(photo.shape[:2])
            assert a["score"] == pytest.approx(b["score"], abs=1e-5)
            assert a["box_xyxy"] == pytest.approx(b["box_xyxy"], abs=1e-2)


def test_the_policy_of_the_page_forbids_other_servers(client):
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy
