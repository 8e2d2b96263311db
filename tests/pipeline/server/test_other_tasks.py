"""The server answers photos with label maps, or their masks with refined ones."""

import base64
import io
import json

import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from pycocotools import mask as mask_api
from torch import nn

from pipeline.errors import RecipeError, RegistryError
from pipeline.recipe import to_json
from pipeline.server import live_model, serve
from pipeline.server.app import build_app
from pipeline.server.live_model import LiveModel
from pipeline.server.serve import start_server
from tests.pipeline.refine.drawn_photos import SIZE_HW, draw_disk, to_rle, to_square
from tests.pipeline.server.direct_backend import OPTIONS, DirectBackend
from tests.pipeline.server.other_models import VALUES, make_refiner, make_semantic_models

PIXELS = np.random.default_rng(0).integers(0, 255, (*SIZE_HW, 3), dtype=np.uint8)


def encode(pixels) -> bytes:
    return cv2.imencode(".png", pixels[..., ::-1] if pixels.ndim == 3 else pixels)[1].tobytes()


PHOTO = encode(PIXELS // 64)
"""Few values, so that the file is below the limit."""

MASKS = [draw_disk((32, 40), 16), draw_disk((92, 52), 22)]
RLES = [to_rle(mask) for mask in MASKS]


@pytest.fixture(scope="module")
def maps():
    return make_semantic_models()


@pytest.fixture(scope="module")
def refiner():
    return make_refiner()


@pytest.fixture(scope="module")
def labeler(maps):
    return TestClient(build_app(DirectBackend(*maps)))


@pytest.fixture(scope="module")
def sharpener(refiner):
    return TestClient(build_app(DirectBackend(refiner)))


def send(client, *masks, **fields):
    files = [("photo", ("x", PHOTO)), *(("masks", ("m", mask)) for mask in masks)]
    return client.post("/predict", files=files, data=fields)


def read(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_a_label_map_is_answered_in_each_format(labeler, maps):
    (row,) = maps[0].current.predictor.predict_photo(PIXELS // 64)
    expected = read(row["label_map"])
    assert set(np.unique(expected)) <= set(VALUES)
    assert len(np.unique(expected)) > 1, "a map of one class would test little"

    response = send(labeler)
    assert response.headers["content-type"] == "image/png"
    assert response.headers["x-model"] == "models:/maps1/1"
    np.testing.assert_array_equal(read(response.content), expected)

    answer = send(labeler, format="json").json()
    assert base64.b64decode(answer["label_map"]) == response.content
    assert answer["image"] == {"width": SIZE_HW[1], "height": SIZE_HW[0]}
    areas = {each["category_id"]: each["area"] for each in answer["segments"]}
    values, counts = np.unique(expected, return_counts=True)
    assert areas == dict(zip(values.tolist(), counts.tolist(), strict=True))
    assert [each["category_name"] for each in answer["segments"]] == row["category_names"]

    segments = send(labeler, format="rle").json()["segments"]
    for each in segments:
        mask = mask_api.decode(each["segmentation"])
        np.testing.assert_array_equal(mask > 0, expected == each["category_id"])

    drawn = read(send(labeler, format="overlay").content)
    assert drawn.shape[0] > SIZE_HW[0], "there is no legend below the photo"
    assert (drawn[: SIZE_HW[0], : SIZE_HW[1]] != PIXELS // 64).any()

    other = send(labeler, model="maps2")
    assert other.headers["x-model"] == "models:/maps2/2"
    assert other.content != response.content
    metrics = labeler.get("/metrics").text
    assert 'bsm_model_version{model="maps2"} 2.0' in metrics


def test_masks_of_every_form_are_refined(sharpener, refiner):
    expected = refiner.current.predictor.refine_masks(PIXELS // 64, RLES)
    rows = [{"image_id": 1, "category_id": 3, "segmentation": rle} for rle in RLES]
    files = {
        "two PNGs": [encode(255 * mask) for mask in MASKS],
        "a list": [json.dumps(RLES).encode()],
        "rows": [json.dumps(rows).encode()],
        "a PNG and one mask": [encode(MASKS[0]), json.dumps(RLES[1]).encode()],
    }
    for name, masks in files.items():
        answer = send(sharpener, *masks).json()
        assert [each["segmentation"] for each in answer["masks"]] == [
            row["rle"] for row in expected
        ], name
    assert answer["model"] == "models:/refiner/1"
    for each, row, mask in zip(answer["masks"], expected, MASKS, strict=True):
        assert {key: each[key] for key in ("change", "confidence", "kept")} == {
            key: row[key] for key in ("change", "confidence", "kept")
        }
        refined = mask_api.decode(each["segmentation"])
        iou = (refined & mask).sum() / (refined | mask).sum()
        assert each["kept"] or each["change"] == pytest.approx(1 - iou)
    text = base64.b64encode(PHOTO).decode()
    png = base64.b64encode(encode(MASKS[1])).decode()
    for masks in ([RLES[0], png], [rows[0], {"segmentation": png}]):
        body = {"photo": text, "masks": masks}
        assert sharpener.post("/predict", json=body).json() == answer


def test_a_mask_that_would_change_too_much_is_kept(sharpener):
    square = json.dumps([[to_square(MASKS[0])]])
    kept = send(sharpener, square, max_change="0", with_given="true").json()["masks"][0]
    free = send(sharpener, square, max_change="1", with_given="true").json()["masks"][0]
    assert kept["kept"]
    assert kept["change"] == free["change"] > 0
    assert kept["segmentation"] == kept["given"] == free["given"] != free["segmentation"]
    assert mask_api.area(free["given"]) == 33 * 33
    drawn = read(send(sharpener, square, format="png").content)
    assert drawn.shape == PIXELS.shape
    assert (drawn != PIXELS // 64).any()


BAD_MASKS = {
    "none": ([], {}, 422, "masks: missing; a mask is COCO RLE"),
    "empty list": ([b"[]"], {}, 422, "no masks; a request may have 1 to 3"),
    "too many": ([json.dumps(RLES * 2)], {}, 413, "4 masks; a request may have 1 to 3"),
    "too many files": ([encode(MASKS[0])] * 4, {}, 400, "send one photo and each field once"),
    "size": ([encode(MASKS[0][:50])], {}, 422, "mask 0: size [50, 128], the photo has [96, 128]"),
    "bomb": ([encode(np.zeros((3000, 3000), np.uint8))], {}, 422, "mask 0: size [3000, 3000]"),
    "bytes": ([bytes(15_000)] * 3, {}, 413, "masks: together they may have 40000 bytes"),
    "text": ([b"no mask"], {}, 422, "mask 0: it starts with"),
    "JSON": ([b'[{"size": '], {}, 400, "; send a PNG or a COCO results file"),
    "values": ([b"[" + b"1," * 10_000 + b"1]"], {}, 413, "masks: "),
    "number": ([b"[7]"], {}, 422, "mask 0: int is not"),
    "RLE": ([json.dumps([RLES[0], RLES[0] | {"counts": "\x01"}])], {}, 422, "mask 1: invalid RLE"),
    "path": ([b'["/etc/hostname"]'], {}, 422, "mask 0: it is not base64"),
    "path in a row": ([b'[{"segmentation": "../x.png"}]'], {}, 422, "URLs are not read"),
    "change": ([json.dumps(RLES)], {"max_change": "2"}, 422, "less than or equal to 1"),
    "threshold": ([json.dumps(RLES)], {"score_threshold": "1"}, 422, "there are: photo, masks"),
}


@pytest.mark.parametrize("name", BAD_MASKS)
def test_bad_masks_are_refused_with_a_sentence(sharpener, name):
    masks, fields, status, text = BAD_MASKS[name]
    response = send(sharpener, *masks, **fields)
    assert response.status_code == status, response.text
    assert text in response.json()["error"]


def test_masks_belong_to_a_refiner(labeler):
    response = send(labeler, encode(MASKS[0]))
    assert response.status_code in (400, 422)
    body = {"photo": base64.b64encode(PHOTO).decode(), "masks": RLES}
    response = labeler.post("/predict", json=body)
    assert response.json()["error"] == "'masks' is no field; there are: photo, model, format"


def test_each_task_describes_its_api(labeler, sharpener):
    for client, task, properties in (
        (labeler, "semantic", {"photo", "model", "format"}),
        (sharpener, "refine", {"photo", "masks", "model", "format", "max_change", "with_given"}),
    ):
        assert client.get("/models").json()["task"] == task
        operation = client.get("/openapi.json").json()["paths"]["/predict"]["post"]
        for body in operation["requestBody"]["content"].values():
            assert set(body["schema"]["properties"]) == properties
    content = sharpener.get("/models").json()
    assert content["limits"]["max_masks"] == OPTIONS.max_masks
    assert content["models"][0]["categories"] == [], "a refiner finds no objects"


def test_an_alias_that_moves_to_another_task_is_not_followed(maps, refiner, monkeypatch, caplog):
    loaded = iter([maps[0].current, refiner.current])
    monkeypatch.setattr(LiveModel, "_load", lambda _: next(loaded))
    monkeypatch.setattr(live_model, "find_version", lambda *_, **__: maps[1].current)
    model = LiveModel("models:/x@champion", registry="", on_swap=lambda _: None)
    assert not model.check_alias()
    assert model.task == "semantic"
    assert "refiner/1 is a model of task refine" in model.problem


def test_models_of_two_tasks_are_not_served_together(maps, refiner, monkeypatch):
    models = {f"models:/{each.name}/1": each for each in (maps[0], refiner)}
    monkeypatch.setattr(serve, "find_version", lambda name, **_: models[name].current)
    monkeypatch.setattr(serve, "read_file", lambda version, _: to_json(version.predictor.recipe))
    monkeypatch.setattr(serve, "check_address", lambda *_: None)
    with pytest.raises(RecipeError, match=r"maps1/1 is a model of task semantic and models:/ref"):
        start_server(list(models), OPTIONS, tracking="sqlite:///none.db", token="")


def test_a_new_version_of_each_task_predicts_once_before_it_serves(maps, refiner, monkeypatch):
    """A version that cannot predict must not replace one that can."""
    for fixed in (maps[0], refiner):
        predictor = fixed.current.predictor
        monkeypatch.setattr(live_model, "find_version", lambda *_, **__: maps[0].current)
        monkeypatch.setattr(live_model, "load_version", lambda _, found=predictor: found)
        assert LiveModel("m", registry="", on_swap=lambda _: None).task == predictor.task

        def fail(*_, **__):
            raise RegistryError("cannot predict")

        with monkeypatch.context() as broken:
            first = next(e for e in predictor.model.modules() if isinstance(e, nn.Conv2d))
            broken.setattr(first, "forward", fail)
            with pytest.raises(RegistryError, match="cannot predict"):
                LiveModel("m", registry="", on_swap=lambda _: None)
