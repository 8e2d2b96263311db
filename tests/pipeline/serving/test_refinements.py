"""A pulled refiner takes photos and masks in any form, and reports all that it cannot read."""

import base64
import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_api

from pipeline.errors import DatasetError
from pipeline.evaluation import mask_refinement
from pipeline.recipe import Recipe
from pipeline.serving.predictor import Predictor
from pipeline.serving.refinements import REFINEMENT_COLUMNS
from tests.pipeline.refine.drawn_photos import (
    SIZE_HW,
    TINY,
    draw_disk,
    make_tiny_refiner,
    refine_to_bright_pixels,
    to_rle,
    to_square,
)


@pytest.fixture
def predictor(monkeypatch):
    monkeypatch.setattr(mask_refinement, "refine_masks", refine_to_bright_pixels)
    return Predictor(
        model=make_tiny_refiner(),
        recipe=Recipe(name="r", model=TINY),
        categories=(),
        device=torch.device("cpu"),
    )


def encode_png(array):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def disk():
    return draw_disk((40, 40), 20)


@pytest.fixture
def photo(disk):
    return np.where(disk[:, :, None] > 0, np.uint8(220), np.full((*SIZE_HW, 3), 40, np.uint8))


def test_masks_in_any_form_are_refined_in_order(predictor, photo, disk, tmp_path):
    coarse = np.asarray(mask_api.decode(mask_api.merge(
        mask_api.frPyObjects([to_square(disk)], *SIZE_HW)
    )))  # fmt: skip
    png = encode_png(coarse * 255)
    (tmp_path / "mask.png").write_bytes(png)
    forms = [
        to_rle(coarse),
        [to_square(disk)],
        png,
        base64.b64encode(png).decode(),
        str(tmp_path / "mask.png"),
        coarse,
        coarse > 0,
    ]
    requests = [{"image": photo, "masks": []}, {"image": encode_png(photo), "masks": forms}]
    rows = predictor.predict(requests)
    assert tuple(rows.columns) == REFINEMENT_COLUMNS
    assert rows["image_index"].tolist() == [1] * len(forms)
    assert rows["mask_index"].tolist() == list(range(len(forms)))
    assert all(rle == to_rle(disk) for rle in rows["rle"])
    assert rows["change"].nunique() == 1
    assert 0.1 < rows["change"][0] < 0.4
    assert rows["confidence"].tolist() == [0.75] * len(forms)
    assert not rows["kept"].any()
    pd.testing.assert_frame_equal(predictor.predict(pd.DataFrame(requests)), rows)


def test_a_large_change_is_kept(predictor, photo, disk):
    requests = [{"image": photo, "masks": [to_rle(draw_disk((40, 40), 15))]}]
    (row,) = predictor.predict(requests, {"max_change": 0.2}).to_dict("records")
    assert row["kept"]
    assert row["change"] > 0.2
    assert row["rle"] == requests[0]["masks"][0]
    (row,) = predictor.predict(requests).to_dict("records")
    assert row["rle"] == to_rle(disk)


def test_masks_that_cannot_be_read_cost_their_photo_and_are_all_named(predictor, photo, disk):
    rgb = encode_png(photo)
    masks = [disk[:50], to_rle(disk), {"size": [96, 128], "counts": [1]}, rgb, [[1, 2]], 7]
    requests = [{"image": photo, "masks": masks}, {"image": photo, "masks": [to_rle(disk)]}]
    bad, good = predictor.predict(requests).to_dict("records")
    assert (good["image_index"], good["mask_index"], good["error"]) == (1, 0, "")
    assert bad["image_index"] == 0
    assert bad["rle"] is None
    text = bad["error"]
    assert text.startswith("image 0: 5 masks cannot be read: ")
    for part in (
        "mask 0: size [50, 128], the photo has [96, 128]",
        "mask 2: invalid RLE",
        "mask 3: it has 3 color channels",
        "mask 4: invalid polygon",
        "mask 5: int is not a path",
    ):
        assert part in text, part
    assert "mask 1" not in text
    with pytest.raises(DatasetError, match="image 0: masks is a int, not a list"):
        predictor.predict([{"image": photo, "masks": 5}])


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        (["photo.jpg"], "entry 0 is a str"),
        ([{"image": 1}], "entry 0 is a dict with image"),
        ("photo.jpg", "got a str"),
        (pd.DataFrame({"image": [1]}), "entry 0 is a dict with image"),
    ],
)
def test_requests_without_masks_are_refused(predictor, requests, message):
    with pytest.raises(DatasetError, match=message):
        predictor.predict(requests)
    with pytest.raises(DatasetError, match=r"max_change must be in \[0, 1\], got 3"):
        predictor.predict([], {"max_change": 3})
