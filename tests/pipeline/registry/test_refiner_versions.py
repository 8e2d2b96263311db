"""A refiner is registered, pulled, evaluated and used as a stage like every other model."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mlflow.models import Model
from PIL import Image

from bsm.checkpoints.weights import save_weights
from bsm.refine.refine import Refined
from jobs.refine import refine
from pipeline.data.manifest import Category
from pipeline.errors import DatasetError, RecipeError, RegistryError
from pipeline.evaluation import mask_refinement
from pipeline.prediction.folder import predict_folder
from pipeline.recipe import EvaluationConfig, Recipe
from pipeline.registry.evaluate_version import evaluate_version
from pipeline.registry.lifecycle import read_card_content
from pipeline.registry.model_card import format_card
from pipeline.registry.predict import load_refiner, load_registered_model
from pipeline.registry.provenance import EvaluationRecord
from pipeline.registry.register import register
from pipeline.registry.versions import download_file, find_version
from pipeline.tracking.runs import open_run
from tests.pipeline.data.tiny_maps import write_map_shards
from tests.pipeline.evaluation.tiny_split import write_split
from tests.pipeline.refine.drawn_photos import (
    SIZE_HW,
    TINY,
    draw_disk,
    make_coarse_rows,
    make_tiny_refiner,
    to_rle,
    write_photos,
)

CLEAN_PROCESS = """
import base64, json, sys
import mlflow, pandas
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
mask = json.loads(sys.argv[3])
photo = base64.b64encode(open("a.png", "rb").read()).decode()
rows = model.predict([{"image": photo, "masks": [mask, mask]}], params={"max_change": 1.0})
table = pandas.DataFrame({"image": ["a.png"], "masks": [[mask]]})
kept = model.predict(table, params={"max_change": 0.0})
print(json.dumps([rows.to_dict("records"), kept.to_dict("records"), "ray" in sys.modules]))
"""


@pytest.fixture(scope="module")
def refiner(tmp_path_factory) -> SimpleNamespace:
    """Register a tiny refiner with random weights, without any category of the splits below."""
    folder = tmp_path_factory.mktemp("refiner")
    recipe = Recipe(name="refiner", storage=str(folder / "runs"), model=TINY)
    weights = folder / "model.safetensors"
    save_weights(make_tiny_refiner(), weights)
    handle = open_run(recipe)
    scores = {"boundary_iou": 0.5, "mask_iou": 0.7, "given_mask_iou": 0.6}
    version = register(
        handle,
        name="refiner",
        weights_path=weights,
        recipe=recipe,
        categories=[Category(category_id=1, category_index=0, name="anything")],
        evaluation=EvaluationRecord(evaluated_on="val, 60 images", metrics=scores),
    )
    assert version.is_champion
    assert "boundary_iou 0.5" in version.decision
    return SimpleNamespace(registry=handle.tracking_uri, uri=version.uri)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, name in enumerate(("a.png", "b.png")):
        pixels = np.random.default_rng(index).integers(0, 255, (*SIZE_HW, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def test_the_card_and_the_signature_say_how_to_use_it(refiner):
    version = find_version(refiner.uri, registry=refiner.registry)
    card = format_card(version, read_card_content(version))
    assert "Sharpens given masks of objects in photos, of any category" in card
    assert f"python jobs/refine.py --model {refiner.uri} --images photos" in card
    assert "| given_mask_iou | 0.6000 |" in card
    assert "recognizes" not in card
    with download_file(version, "MLmodel") as file:
        signature = Model.load(str(file)).signature
    assert [column.name for column in signature.inputs] == ["image", "masks"]
    names = ["image_index", "mask_index", "rle", "change", "confidence", "kept", "error"]
    assert [column.name for column in signature.outputs] == names
    assert [param.name for param in signature.params] == ["max_change"]


@pytest.mark.slow
def test_a_clean_process_pulls_it_and_refines(refiner, photos):
    mask = to_rle(draw_disk((60, 40), 25))
    done = subprocess.run(
        [sys.executable, "-c", CLEAN_PROCESS, refiner.registry, "models:/refiner@champion",
         json.dumps(mask)],
        cwd=photos, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True,
        timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows, kept, imports_ray = json.loads(done.stdout.splitlines()[-1])
    assert not imports_ray
    assert [row["mask_index"] for row in rows] == [0, 1]
    assert rows[0]["rle"]["size"] == list(SIZE_HW)
    assert rows[0]["rle"] != mask
    assert not rows[0]["kept"]
    assert kept[0]["kept"]
    assert kept[0]["rle"] == mask
    model = load_refiner(refiner.uri, tracking=refiner.registry).model
    registered = load_registered_model(refiner.uri, tracking=refiner.registry).model
    assert type(model) is type(registered.model)
    request = [{"image": str(photos / "a.png"), "masks": [mask]}]
    expected = registered.predict(request, {"max_change": 1.0}).to_dict("records")
    assert rows[0]["rle"] == expected[0]["rle"]
    assert rows[0]["change"] == pytest.approx(expected[0]["change"])


def test_it_is_evaluated_on_any_split_of_instances(refiner, tmp_path):
    version = find_version(refiner.uri, registry=refiner.registry)
    split = write_split(tmp_path / "split", row_groups=((3,),))
    record = evaluate_version(version, split, EvaluationConfig())
    assert record.evaluated_on == "tiny, 3 images"
    assert 0 < record.metrics["boundary_iou"] < 1
    saved = read_card_content(version).evaluations[-1]
    assert saved.evaluated_on == record.evaluated_on
    assert saved.metrics == pytest.approx(record.metrics, nan_ok=True)
    with pytest.raises(DatasetError, match="holds semantic shards"):
        evaluate_version(version, write_map_shards(tmp_path), EvaluationConfig())
    itself = load_refiner(refiner.uri, tracking=refiner.registry)
    with pytest.raises(RecipeError, match="predicts no masks to refine"):
        evaluate_version(version, split, EvaluationConfig(), refiner=itself)


def drop_a_pixel(_model, _image, masks) -> Refined:
    changed = masks.clone()
    for mask in changed:
        if mask.sum() > 1:
            mask[tuple(mask.nonzero()[0])] = False
    return Refined(changed, torch.ones(len(masks)))


def test_predictions_pass_through_it_and_the_file_says_so(
    refiner, registered_model, photos, tmp_path, monkeypatch
):
    monkeypatch.setattr(mask_refinement, "refine_masks", drop_a_pixel)
    detector = load_registered_model(
        "models:/tiny@champion", tracking=registered_model.handle.tracking_uri
    )
    stage = load_refiner(refiner.uri, tracking=refiner.registry)
    plain = predict_folder(detector, str(photos), tmp_path / "plain", score=0.0)
    refined = predict_folder(detector, str(photos), tmp_path / "fine", score=0.0, refiner=stage)
    assert "refined_by" not in plain
    assert refined["refined_by"] == refiner.uri
    assert 0 <= refined["kept"] <= refined["detections"] == plain["detections"] > 0
    before, after = (
        json.loads((tmp_path / name / "detections.json").read_text()) for name in ("plain", "fine")
    )
    assert after.pop("refined_by") == refiner.uri
    assert before != after
    for content in (before, after):
        for row in content["detections"]:
            row.pop("segmentation")
    assert before == after


def test_a_refiner_finds_no_objects_and_a_detector_refines_nothing(
    refiner, registered_model, photos, tmp_path
):
    itself = load_registered_model(refiner.uri, tracking=refiner.registry)
    with pytest.raises(RecipeError, match="finds none itself; use it with"):
        predict_folder(itself, str(photos), tmp_path / "out")
    with pytest.raises(RegistryError, match="is a model of task instance, not a refiner"):
        load_refiner("models:/tiny@champion", tracking=registered_model.handle.tracking_uri)


def test_the_job_refines_a_results_file(refiner, tmp_path, capsys):
    truth = write_photos(tmp_path)
    file = tmp_path / "results.json"
    file.write_text(json.dumps(make_coarse_rows(truth)))
    flags = {
        "model": "models:/refiner@champion",
        "tracking_uri": refiner.registry,
        "images": str(tmp_path / "photos"),
        "detections": str(file),
        "out": str(tmp_path / "out.json"),
    }
    result = refine(**flags, truth=str(tmp_path / "truth.json"))
    assert (result["model"], result["masks"]) == (refiner.uri, 6)
    assert len(json.loads((tmp_path / "out.json").read_text())) == 6
    assert f"{result['refined']} of 6 masks refined" in capsys.readouterr().out
    with pytest.raises(RecipeError, match="got --detections and --labels"):
        refine(**flags | {"model": "models:/none/1", "labels": "masks"})
