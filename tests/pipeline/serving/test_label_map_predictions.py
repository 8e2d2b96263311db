"""A packaged semantic model predicts label maps: rows, files and pictures."""

import io
import json
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image

from bsm.build import build_model
from bsm.checkpoints.weights import save_weights
from bsm.configs.semantic import DeepLabConfig, SemanticHeadConfig
from bsm.configs.shared import BackboneConfig
from pipeline.data.manifest import Category
from pipeline.errors import RecipeError
from pipeline.prediction.folder import predict_folder
from pipeline.recipe import EvaluationConfig, Recipe
from pipeline.registry.predict import RegisteredModel
from pipeline.registry.register import package_model
from pipeline.serving.predictor import LABEL_COLUMNS

VALUES = (7, 12, 40)
"""Category ids of the classes."""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A tiny DeepLab with random weights, packaged for the registry and loaded again."""
    folder = tmp_path_factory.mktemp("packaged")
    model = DeepLabConfig(
        num_classes=3,
        backbone=BackboneConfig(name="test_resnet", norm="batch", freeze_at=0),
        head=SemanticHeadConfig(aspp_rates=(1, 2), channels=16, low_level_channels=8),
    )
    recipe = Recipe(name="maps", model=model, evaluation=EvaluationConfig(window_px=48))
    categories = tuple(
        Category(category_id=value, category_index=index, name=name)
        for index, (value, name) in enumerate(zip(VALUES, ("road", "car", "sky"), strict=True))
    )
    torch.manual_seed(0)
    built = build_model(model)
    save_weights(built, folder / "model.safetensors")
    model_folder = package_model(
        folder, weights_path=folder / "model.safetensors", recipe=recipe, categories=categories
    )
    loaded = mlflow.pyfunc.load_model(str(model_folder))
    registered = RegisteredModel(loaded.unwrap_python_model().predictor, "models:/maps/1")
    return SimpleNamespace(
        loaded=loaded, registered=registered, model=built.eval(), folder=model_folder
    )


def make_photo(size_hw: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (*size_hw, 3), dtype=np.uint8)


def decode_map(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_a_row_holds_a_label_map_of_category_ids(package) -> None:
    photo = make_photo((40, 44))
    (row,) = package.loaded.predict([photo]).to_dict("records")
    with torch.inference_mode():
        pixels = torch.from_numpy(photo).permute(2, 0, 1)[None]
        logits = package.model(pixels, torch.tensor([photo.shape[:2]]))
    expected = np.array(VALUES)[logits[0, :, :40, :44].argmax(0).numpy()]
    np.testing.assert_array_equal(decode_map(row["label_map"]), expected)
    values, counts = np.unique(expected, return_counts=True)
    assert len(values) > 1, "a map of one class would test little"
    assert sorted(row["category_ids"]) == values.tolist()
    shares = dict(zip(row["category_ids"], row["pixel_shares"], strict=True))
    assert shares == {int(v): c / expected.size for v, c in zip(values, counts, strict=True)}
    assert row["pixel_shares"] == sorted(row["pixel_shares"], reverse=True)
    names = dict(zip(VALUES, ("road", "car", "sky"), strict=True))
    assert row["category_names"] == [names[each] for each in row["category_ids"]]


def test_a_prediction_is_independent_of_the_other_photos(package) -> None:
    small, large = make_photo((40, 44)), make_photo((60, 130), seed=1)
    rows = package.loaded.predict([small, large]).to_dict("records")
    assert [row["image_index"] for row in rows] == [0, 1]
    alone = package.loaded.predict([large]).to_dict("records")
    assert rows[1]["label_map"] == alone[0]["label_map"]
    assert decode_map(rows[1]["label_map"]).shape == (60, 130)


def test_a_bad_photo_costs_only_itself(package, caplog) -> None:
    photo = make_photo((40, 44))
    rows = package.loaded.predict([b"no photo", photo]).to_dict("records")
    alone = package.loaded.predict([photo]).to_dict("records")
    assert rows[1]["label_map"] == alone[0]["label_map"]
    assert (rows[0]["image_index"], rows[0]["label_map"]) == (0, None)
    assert rows[0]["error"].startswith("image 0: not an image file")
    assert "1 of 2 images cannot be predicted" in caplog.text


def test_the_signature_names_the_output_columns(package) -> None:
    signature = mlflow.models.Model.load(str(package.folder)).signature
    names = signature.outputs.input_names()
    assert names == list(LABEL_COLUMNS)
    # A threshold would have no effect.
    assert signature.params is None or not signature.params.params


def test_a_folder_becomes_label_maps_and_pictures(package, tmp_path) -> None:
    photos = tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.jpg", "b.png", "sub/a.png")):
        Image.fromarray(make_photo((40, 44 + number), seed=number)).save(photos / name)
    out = tmp_path / "out"
    result = predict_folder(package.registered, str(photos), out)
    assert (result["images"], result["model"]) == (4, "models:/maps/1")
    content = json.loads((out / "label_maps.json").read_text())
    assert [each["name"] for each in content["categories"]] == ["road", "car", "sky"]
    paths = {each["file_name"]: each["label_map"] for each in content["images"]}
    # Photos with equal stems get different maps.
    assert paths == {
        "a.png": "label_maps/a.png",
        "b.jpg": "label_maps/b.jpg.png",
        "b.png": "label_maps/b.png.png",
        "sub/a.png": "label_maps/sub/a.png",
    }
    for image in content["images"]:
        label = np.asarray(Image.open(out / image["label_map"]))
        assert label.shape == (image["height"], image["width"])
        shares = {each["category_id"]: each["pixel_share"] for each in image["classes"]}
        values, counts = np.unique(label, return_counts=True)
        assert shares == {int(v): c / label.size for v, c in zip(values, counts, strict=True)}
        assert (out / image["file_name"]).exists()


def test_a_score_is_refused_for_a_semantic_model(package, tmp_path) -> None:
    with pytest.raises(RecipeError, match="without scores: remove --score"):
        predict_folder(package.registered, str(tmp_path), tmp_path / "out", score=0.5)
