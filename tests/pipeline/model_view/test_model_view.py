"""The pages of models show what the models compute, and the truth where there is one."""

import base64
import io
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from bsm.build import build_model
from bsm.configs.instance import MaskHeadConfig, MaskRCNNConfig
from bsm.configs.semantic import DeepLabConfig, SemanticHeadConfig
from bsm.configs.shared import BackboneConfig, FpnBackboneConfig, SqueezeConfig
from bsm.instance import rcnn
from pipeline.data.collate import collate_images
from pipeline.data.manifest import Category
from pipeline.errors import DatasetError, RecipeError
from pipeline.model_view.colors import color_flow, draw_wheel, project_features
from pipeline.model_view.options import CompareOptions, FeatureOptions
from pipeline.model_view.squeeze_features import check_squeeze, view_frame, view_instances
from pipeline.model_view.view_features import view_features
from pipeline.model_view.view_models import view_models
from pipeline.recipe import DataConfig, EvaluationConfig, Recipe
from pipeline.registry.predict import load_registered_model
from pipeline.serving.predictor import Predictor

NOISE = np.random.default_rng(0).integers(0, 255, (72, 96, 3), dtype=np.uint8)
# Smooth, so that JPEG hardly changes it.
PIXELS = cv2.GaussianBlur(NOISE, (31, 31), 0)
NAMES = ("one", "two", "three")
SQUARE = [20, 10, 60, 10, 60, 50, 20, 50]


def make_predictor(model, recipe: Recipe) -> Predictor:
    categories = tuple(Category(category_id=n, category_index=n, name=NAMES[n]) for n in range(3))
    return Predictor(
        model=model.eval(), recipe=recipe, categories=categories, device=torch.device("cpu")
    )


@pytest.fixture(scope="module")
def tiny(registered_model):
    """Return the URI of a model with a squeeze, the registry, and the loaded model."""
    uri = f"models:/{registered_model.name}@champion"
    tracking = registered_model.handle.tracking_uri
    return uri, tracking, load_registered_model(uri, tracking=tracking).model


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, pixels in (("a", PIXELS), ("b", PIXELS[:, ::-1])):
        cv2.imwrite(str(folder / f"{name}.png"), pixels[..., ::-1])
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (folder / "notes.txt").write_text("no photo")
    return folder


def read_pictures(page: str) -> list[np.ndarray]:
    return [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        for data in re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    ]


def test_the_direction_of_a_flow_is_its_hue_and_its_length_the_saturation():
    flow = np.zeros((2, 1, 5), np.float32)
    flow[:, 0] = np.array([[3, 0], [-3, 0], [0, 3], [1.5, 0], [0, 0]]).T
    right, left, down, short, none = color_flow(flow, longest=3)[0].astype(int)
    assert right.tolist() == [255, 0, 0]
    assert left.tolist() == [0, 255, 255]
    assert down.tolist() == [127, 255, 0]
    assert short.tolist() == [255, 128, 128]
    assert none.tolist() == [255, 255, 255]
    wheel = np.asarray(draw_wheel(101)).astype(int)
    np.testing.assert_allclose(wheel[50, 100], right, atol=2)
    np.testing.assert_allclose(wheel[100, 50], down, atol=2)
    assert wheel[0, 0].tolist() == [255, 255, 255]


def test_principal_components_find_the_axis_along_which_features_differ():
    rng = np.random.default_rng(1)
    axis = rng.normal(size=(8, 1, 1))
    ramp = np.linspace(0, 1, 30)[None, None, :]
    feature = (5 * axis * ramp + 0.01 * rng.normal(size=(8, 4, 30))).astype(np.float32)
    first, second = project_features([feature[:, :, :15], feature[:, :, 15:]])
    red = np.concatenate([first, second], axis=1)[0, :, 0].astype(int)
    assert abs(red[-1] - red[0]) > 240
    assert abs(np.corrcoef(red, ramp[0, 0])[0, 1]) > 0.99
    again = project_features([feature[:, :, :15], feature[:, :, 15:]])
    np.testing.assert_array_equal(again[0], first)
    (constant,) = project_features([np.ones((8, 4, 4), np.float32)])
    assert set(np.unique(constant)) == {128}


def test_the_views_of_objects_are_the_predictions_of_the_model(tiny, monkeypatch):
    # The CPU computes the masks of a photo in parts.
    monkeypatch.setattr(rcnn, "_ROIS_AT_ONCE_ON_CPU", 2)
    predictor = tiny[2]
    views = view_instances(predictor, PIXELS, score=0.0, objects=3)
    rows = predictor.predict_photo(PIXELS)[:3]
    assert len(views) == 3
    for view, row in zip(views, rows, strict=True):
        assert view.title == f"{row['category_name']} {row['score']:.2f}"
        assert np.clip(view.box_xyxy, 0, [96, 72, 96, 72]) == pytest.approx(row["box_xyxy"])
        assert view.contraction_flow.shape == view.expansion_flow.shape == (2, 14, 14)
        assert view.feature.shape[1:] == (14, 14)
        assert view.boundary.shape == view.after.shape == view.before.shape == (28, 28)
        assert (view.boundary >= 0).all()
        assert (view.boundary <= 1).all()
    batch = collate_images([PIXELS], predictor.recipe.data)
    with torch.inference_mode():
        found = predictor.model(batch.images, batch.image_sizes_hw)
    masks = found.mask_probs[0][found.valid[0]][:3] > 0.5
    np.testing.assert_array_equal(np.stack([view.after for view in views]), masks)
    assert view_instances(predictor, PIXELS, score=1.0, objects=3) == []


def test_the_page_of_features_shows_each_object_and_the_wheel(tiny, photos, tmp_path, caplog):
    uri, tracking, _ = tiny
    result = view_features(
        uri,
        [str(photos)],
        FeatureOptions(score=0.0, objects=2),
        out=str(tmp_path / "f.html"),
        tracking=tracking,
    )
    assert (result["model"], result["photos"], result["objects"]) == ("models:/tiny/1", 2, 4)
    assert "broken.jpg is left out" in caplog.text
    page = Path(result["out"]).read_text()
    *strips, wheel = read_pictures(page)
    # Photo, two flows, components, boundary, two masks.
    assert [each.shape for each in strips] == [(200, 7 * 206 - 6, 3)] * 4
    assert wheel.shape == (160, 160, 3)
    assert "b.png, longest flow" in page
    with pytest.raises(RecipeError, match="finds no object with a score of 1 or more in 2 photos"):
        view_features(uri, [str(photos)], FeatureOptions(score=1.0), out="", tracking=tracking)


def make_deeplab(**head) -> DeepLabConfig:
    return DeepLabConfig(
        num_classes=3,
        backbone=BackboneConfig(name="test_resnet", norm="batch", freeze_at=0),
        head=SemanticHeadConfig(aspp_rates=(1, 2), channels=16, low_level_channels=8, **head),
    )


def test_the_view_of_a_frame_leaves_out_the_padding_and_the_sliding_window():
    config = make_deeplab()
    recipe = Recipe(
        name="maps",
        model=config,
        data=DataConfig(test_size_hw=None),
        evaluation=EvaluationConfig(window_px=48),
    )
    torch.manual_seed(0)
    predictor = make_predictor(build_model(config), recipe)
    check_squeeze(predictor, "models:/maps/1")
    view = view_frame(predictor, PIXELS[:64])
    assert view.after.shape == (64, 96)
    for name, stride in (("contraction_flow", 8), ("expansion_flow", 8), ("feature", 8)):
        assert getattr(view, name).shape[1:] == (64 // stride, 96 // stride), name
    assert view.boundary.shape == (16, 24)
    assert view.before is None


@pytest.mark.parametrize(
    ("head", "text"),
    [
        (MaskHeadConfig(kind="plain", channels=16, num_convs=1), "has no boundary squeeze"),
        (
            MaskHeadConfig(channels=16, num_convs=1, squeeze=SqueezeConfig(warp="none")),
            "has warp 'none'",
        ),
    ],
)
def test_a_model_without_flows_is_refused(head, text):
    config = MaskRCNNConfig(
        num_classes=3,
        backbone=FpnBackboneConfig(name="resnet18", norm="group", freeze_at=0, fpn_channels=16),
        mask_head=head,
    )
    predictor = make_predictor(build_model(config), Recipe(name="x", model=config))
    with pytest.raises(RecipeError, match=text):
        check_squeeze(predictor, "models:/x/1")


def write_truth(folder: Path) -> str:
    content = {
        "images": [{"id": 4, "file_name": "val/a.png", "height": 72, "width": 96}],
        "categories": [{"id": 7, "name": "disk"}, {"id": 8, "name": "star"}],
        "annotations": [
            {"id": 1, "image_id": 4, "category_id": 8, "segmentation": [SQUARE], "iscrowd": 0},
            {"id": 2, "image_id": 4, "category_id": 7, "segmentation": [SQUARE], "iscrowd": 1},
        ],
    }
    file = folder / "truth.json"
    file.write_text(json.dumps(content))
    return str(file)


def test_models_and_the_truth_are_side_by_side(tiny, photos, tmp_path, caplog):
    uri, tracking, predictor = tiny
    options = CompareOptions(score=0.0, width=200)
    result = view_models(
        [uri, "models:/tiny/1"],
        [str(photos)],
        options,
        out=str(tmp_path / "m.html"),
        truth=write_truth(tmp_path),
        tracking=tracking,
    )
    assert result["photos"] == 2
    assert "models:/tiny/1 is shown 2 times" in caplog.text
    page = Path(result["out"]).read_text()
    assert "The truth does not list b.png." in page
    count = len(predictor.predict_photo(PIXELS))
    counts = f"{count} by models:/tiny/1, {count} by models:/tiny/1"
    assert f"a.png: 1 in the truth, {counts}" in page
    strip = read_pictures(page)[0]
    assert strip.shape == (150, 4 * 206 - 6, 3)
    photo, true, first, second = (strip[:, n * 206 : n * 206 + 200].astype(int) for n in range(4))
    # Inside the true square the color of "star" is blended over the photo, and far away nothing is.
    assert np.abs(true - photo)[40:90, 60:110].mean() > 10
    assert np.abs(true - photo)[110:, 150:].mean() < 2
    # One model, twice; JPEG encodes the two panels a little differently.
    assert np.abs(first - second).mean() < 0.5 * np.abs(first - photo).mean()


def test_what_cannot_be_compared_is_an_error(tiny, photos, tmp_path):
    uri, tracking, _ = tiny
    arguments = {"out": str(tmp_path / "m.html"), "tracking": tracking}
    with pytest.raises(RecipeError, match="no model is given"):
        view_models([], [str(photos)], CompareOptions(), **arguments)
    with pytest.raises(DatasetError, match=r"--images: there is no .*/nothing"):
        view_models([uri], [str(tmp_path / "nothing")], CompareOptions(), **arguments)
    bad = tmp_path / "bad.json"
    bad.write_text("[]")
    with pytest.raises(DatasetError, match="not a COCO annotation file"):
        view_models([uri], [str(photos)], CompareOptions(), truth=str(bad), **arguments)
    with pytest.raises(DatasetError, match="no JPEG, PNG, WebP, TIFF or BMP file can be read"):
        view_models([uri], [str(photos / "broken.jpg")], CompareOptions(), **arguments)
