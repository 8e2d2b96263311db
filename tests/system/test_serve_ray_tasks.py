"""Models of other tasks are registered, pulled by a server on Ray, and answer."""

import io

import numpy as np
import pytest
import requests
from PIL import Image
from pycocotools import mask as mask_api

from bsm.checkpoints.weights import save_weights
from pipeline.recipe import Recipe
from pipeline.registry.provenance import EvaluationRecord
from pipeline.registry.register import register
from pipeline.server.options import ServeOptions
from pipeline.server.serve import start_server
from pipeline.tracking.runs import open_run
from tests.object_stores import find_free_port
from tests.pipeline.refine.drawn_photos import SIZE_HW, draw_disk
from tests.pipeline.server.other_models import VALUES, make_refiner, make_semantic_models

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture
def serve_model(one_ray, tmp_path):
    """Return a function that registers a model and serves it; the end of the test stops it."""
    from ray import serve

    started = []

    def start(held):
        predictor = held.current.predictor
        recipe = Recipe(
            name=held.name, storage=str(tmp_path / "runs"), model=predictor.recipe.model
        )
        weights = tmp_path / "model.safetensors"
        save_weights(predictor.model, weights)
        handle = open_run(recipe)
        register(
            handle,
            name=held.name,
            weights_path=weights,
            recipe=recipe,
            categories=predictor.categories,
            evaluation=EvaluationRecord(evaluated_on="val, 9 images", metrics={"miou": 0.5}),
        )
        options = ServeOptions(port=find_free_port(), cpus=0)
        uri = f"models:/{held.name}/1"
        started.append(start_server([uri], options, tracking=handle.tracking_uri, token=""))
        return started[-1].address

    yield start
    for each in started:
        each.stop()
    serve.shutdown()


def encode(pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_a_semantic_model_answers_with_a_label_map(serve_model):
    (held, _) = make_semantic_models()
    pixels = np.random.default_rng(0).integers(0, 255, (*SIZE_HW, 3), dtype=np.uint8)
    address = serve_model(held)
    answer = requests.post(f"{address}/predict", files={"photo": encode(pixels)}, timeout=60)
    assert (answer.status_code, answer.headers["x-model"]) == (200, "models:/maps1/1")
    (row,) = held.current.predictor.predict_photo(pixels)
    labels = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert set(np.unique(labels)) <= set(VALUES)
    np.testing.assert_array_equal(labels, np.asarray(Image.open(io.BytesIO(row["label_map"]))))


def test_a_refiner_answers_with_a_mask_for_each_mask(serve_model):
    pixels = np.random.default_rng(0).integers(0, 255, (*SIZE_HW, 3), dtype=np.uint8)
    masks = [draw_disk((32, 40), 16), draw_disk((92, 52), 22)]
    address = serve_model(make_refiner())
    answer = requests.post(
        f"{address}/predict",
        files=[("photo", encode(pixels)), *(("masks", encode(255 * mask)) for mask in masks)],
        data={"max_change": "1"},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    found = answer.json()["masks"]
    assert len(found) == len(masks)
    for row, given in zip(found, masks, strict=True):
        refined = mask_api.decode(row["segmentation"])
        assert refined.shape == SIZE_HW
        assert (refined != given).any(), "this refiner changes every mask"
