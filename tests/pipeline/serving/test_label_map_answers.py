"""A packaged semantic model names the class of every pixel: rows, files and pictures."""

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
from pipeline.recipe import EvaluationConfig, Recipe
from pipeline.registry.predict import Pulled, predict_folder
from pipeline.registry.register import package

VALUES = (7, 12, 40)
"""Of the classes, in the label files."""


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A tiny DeepLab with random weights, as the registry hands it out."""
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
    place = package(
        folder, weights_path=folder / "model.safetensors", recipe=recipe, categories=categories
    )
    loaded = mlflow.pyfunc.load_model(str(place))
    inner = loaded.unwrap_python_model()
    pulled = Pulled(loaded, "models:/maps/1", inner.categories, inner.task)
    return SimpleNamespace(pulled=pulled, model=built.eval(), place=place)


def photo_of(size_hw: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (*size_hw, 3), dtype=np.uint8)


def map_of(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_a_row_holds_the_label_map_in_the_values_of_the_data_set(packaged) -> None:
    photo = photo_of((40, 44))
    (row,) = packaged.pulled.model.predict([photo]).to_dict("records")
    with torch.inference_mode():
        pixels = torch.from_numpy(photo).permute(2, 0, 1)[None]
        logits = packaged.model(pixels, torch.tensor([photo.shape[:2]]))
    expected = np.array(VALUES)[logits[0, :, :40, :44].argmax(0).numpy()]
    found = map_of(row["label_map"])
    np.testing.assert_array_equal(found, expected)
    values, counts = np.unique(expected, return_counts=True)
    assert len(values) > 1, "a map of one class would say little"
    assert sorted(row["category_ids"]) == values.tolist()
    told = dict(zip(row["category_ids"], row["pixel_shares"], strict=True))
    assert told == {int(v): c / expected.size for v, c in zip(values, counts, strict=True)}
    assert row["pixel_shares"] == sorted(row["pixel_shares"], reverse=True)
    names = dict(zip(VALUES, ("road", "car", "sky"), strict=True))
    assert row["category_names"] == [names[each] for each in row["category_ids"]]


def test_a_photo_is_answered_alone_and_through_the_recipe_s_windows(packaged) -> None:
    small, large = photo_of((40, 44)), photo_of((60, 130), seed=1)
    rows = packaged.pulled.model.predict([small, large]).to_dict("records")
    assert [row["image_index"] for row in rows] == [0, 1]
    alone = packaged.pulled.model.predict([large]).to_dict("records")
    assert rows[1]["label_map"] == alone[0]["label_map"]
    assert map_of(rows[1]["label_map"]).shape == (60, 130)


def test_the_signature_says_what_comes_out(packaged) -> None:
    signature = mlflow.models.Model.load(str(packaged.place)).signature
    names = signature.outputs.input_names()
    assert names == ["image_index", "label_map", "category_ids", "category_names", "pixel_shares"]
    # A threshold would do nothing.
    assert signature.params is None or not signature.params.params


def test_a_folder_becomes_label_maps_and_pictures(packaged, tmp_path) -> None:
    photos = tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.jpg", "b.png", "sub/a.png")):
        Image.fromarray(photo_of((40, 44 + number), seed=number)).save(photos / name)
    out = tmp_path / "out"
    result = predict_folder(packaged.pulled, str(photos), out)
    assert (result["images"], result["model"]) == (4, "models:/maps/1")
    content = json.loads((out / "label_maps.json").read_text())
    assert [each["name"] for each in content["categories"]] == ["road", "car", "sky"]
    places = {each["file_name"]: each["label_map"] for each in content["images"]}
    # Two photos of one name have a map each.
    assert places == {
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


def test_a_score_is_refused_where_there_is_none(packaged, tmp_path) -> None:
    with pytest.raises(RecipeError, match="has no scores: leave out --score"):
        predict_folder(packaged.pulled, str(tmp_path), tmp_path / "out", score=0.5)
