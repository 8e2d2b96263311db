"""Photos in every form give the same pixels, and an unreadable one costs only itself."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from bsm.build import build_model
from bsm.configs.instance import BoxHeadConfig, MaskHeadConfig, MaskRCNNConfig
from bsm.configs.shared import FpnBackboneConfig
from pipeline.data.manifest import Category
from pipeline.errors import DatasetError
from pipeline.recipe import DataConfig, Recipe
from pipeline.serving import predictor as serving
from pipeline.serving.photos import read_photo
from pipeline.serving.predictor import Predictor
from tests.pipeline.data.coco_samples import bomb_png


@pytest.fixture
def photo():
    return np.random.default_rng(0).integers(0, 255, (72, 96, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def predictor():
    config = MaskRCNNConfig(
        num_classes=2,
        backbone=FpnBackboneConfig(name="resnet18", norm="group", freeze_at=0, fpn_channels=16),
        box_head=BoxHeadConfig(hidden=32, detections_per_image=5),
        mask_head=MaskHeadConfig(channels=16, num_convs=1),
    )
    torch.manual_seed(0)
    return Predictor(
        model=build_model(config).eval(),
        recipe=Recipe(name="tiny", model=config, data=DataConfig(test_short_edge_px=64)),
        categories=tuple(
            Category(category_id=index, category_index=index, name=f"class {index}")
            for index in range(2)
        ),
        device=torch.device("cpu"),
    )


def encode(array, kind="PNG"):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind)
    return stream.getvalue()


def test_all_forms_give_the_same_pixels(photo, tmp_path):
    data = encode(photo)
    (tmp_path / "a.png").write_bytes(data)
    text = base64.b64encode(data).decode()
    jpeg = base64.b64encode(encode(photo, "JPEG")).decode()
    for form in (photo, data, bytearray(data), tmp_path / "a.png", str(tmp_path / "a.png"), text):
        np.testing.assert_array_equal(read_photo(form, name="it"), photo)
    assert read_photo(jpeg, name="it").shape == photo.shape


def test_gray_and_transparent_images_become_rgb(photo):
    gray = np.ascontiguousarray(photo[:, :, 0])
    assert read_photo(gray, name="it").shape == (72, 96, 3)
    assert read_photo(encode(gray), name="it").shape == (72, 96, 3)
    alpha = np.dstack([photo, np.zeros((72, 96), np.uint8)])
    np.testing.assert_array_equal(read_photo(encode(alpha), name="it"), photo)


def test_a_bad_photo_costs_only_itself(photo, predictor, caplog):
    cut = encode(photo, "JPEG")[:30]
    photos = [photo, "no/such.jpg", b"text", 7, photo.astype(np.float32), cut, photo]
    every = {"score_threshold": 0.0}
    rows = predictor.predict(photos, every).to_dict("records")
    errors = {row["image_index"]: row["error"] for row in rows if row["error"]}
    expected = {
        1: "image 1 (no/such.jpg): No such file",
        2: "image 2: not an image file, or its header is broken: it starts with b'text' (4 bytes)",
        3: "image 3: int is not a path",
        4: "image 4 is an array of float32",
        5: "image 5",
    }
    assert errors.keys() == expected.keys()
    for index, start in expected.items():
        assert errors[index].startswith(start)
        assert errors[index] in caplog.text
    assert all(row["rle"] is None for row in rows if row["error"])
    alone = predictor.predict([photo], every).to_dict("records")
    assert alone
    for index in (0, 6):
        found = [row for row in rows if row["image_index"] == index]
        assert found == [{**row, "image_index": index} for row in alone]


def test_a_request_without_a_good_photo_is_an_error_that_names_all(predictor):
    with pytest.raises(DatasetError) as raised:
        predictor.predict(["no/such.jpg", b"text"])
    text = str(raised.value)
    assert text.startswith("2 of 2 images cannot be predicted:\n  image 0 (no/such.jpg): No such")
    assert "image 1: not an image file" in text


def test_a_photo_that_does_not_fit_into_memory_costs_only_itself(photo, predictor, monkeypatch):
    detect = serving.detect

    def fail_on_narrow(model, batch, **settings):
        if batch.original_sizes_hw[0, 1] == 8:
            raise MemoryError("Unable to allocate 9 GiB")
        return detect(model, batch, **settings)

    monkeypatch.setattr(serving, "detect", fail_on_narrow)
    narrow = np.ascontiguousarray(photo[:, :8])
    rows = predictor.predict([narrow, photo], {"score_threshold": 0.0}).to_dict("records")
    assert rows[0]["error"] == "image 0: not enough memory to predict it: Unable to allocate 9 GiB"
    assert [row["error"] for row in rows[1:]] == [""] * (len(rows) - 1)
    assert len(rows) > 1


def test_a_decompression_bomb_is_refused_by_its_header():
    with pytest.raises(DatasetError, match="it: 20000 x 10000 pixels, the limit is 178956970"):
        read_photo(bomb_png(20_000, 10_000), name="it")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_other_formats_are_read_from_base64_too(photo, kind):
    data = encode(photo, kind)
    text = base64.b64encode(data).decode()
    np.testing.assert_array_equal(read_photo(text, name="it"), read_photo(data, name="it"))


def test_what_decoding_changes_is_logged_with_numbers(photo, predictor, caplog):
    alpha = encode(np.dstack([photo, np.zeros((72, 96), np.uint8)]))
    deep = encode(photo[:, :, 0].astype(np.uint16) * 16)
    predictor.predict([photo, alpha, deep])
    assert "image 1: 100 % of the pixels are not opaque" in caplog.text
    assert "image 2: values up to 4064 become values up to 15" in caplog.text
