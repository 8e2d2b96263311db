"""Rows of predictions become objects of supervision and FiftyOne, to the pixel."""

import cv2
import numpy as np
import pandas as pd
import pytest
from pycocotools import mask as mask_api

from pipeline.errors import DatasetError, SetupError
from pipeline.prediction import adapters
from pipeline.prediction.adapters import crop_mask, list_objects, to_fiftyone, to_supervision

SIZE_HW = (60, 80)
BOXES = [(10.4, 12.7, 40.2, 45.1), (50.0, 3.0, 79.6, 30.5)]
EDGES = [(11, 13, 40, 45), (50, 3, 80, 30)]
"""Of the masks' ellipses, in whole pixels."""


def draw_masks() -> list[np.ndarray]:
    masks = []
    for x0, y0, x1, y1 in EDGES:
        mask = np.zeros(SIZE_HW, np.uint8)
        center, axes = ((x0 + x1) // 2, (y0 + y1) // 2), ((x1 - x0) // 2 - 1, (y1 - y0) // 2 - 1)
        masks.append(cv2.ellipse(mask, center, axes, 0, 0, 360, 1, -1))
    return masks


MASKS = draw_masks()


@pytest.fixture
def rows():
    found = []
    for index, (mask, box) in enumerate(zip(MASKS, BOXES, strict=True)):
        packed = mask_api.encode(np.asfortranarray(mask))
        rle = {"size": list(SIZE_HW), "counts": packed["counts"].decode()}
        found.append(
            {"image_index": 0, "category_name": f"c{index}", "category_index": index}
            | {"score": 0.9 - 0.25 * index, "box_xyxy": list(box), "rle": rle, "error": ""}
        )
    return found


@pytest.fixture
def label_row():
    labels = MASKS[0] * 7 + MASKS[1] * 40
    png = cv2.imencode(".png", labels)[1].tobytes()
    ids, names = [0, 7, 40], ["ground", "car", "sky"]
    shares = [float((labels == each).mean()) for each in ids]
    return {"label_map": png, "category_ids": ids, "category_names": names, "pixel_shares": shares}


def to_results(rows) -> list[dict]:
    """Write the rows as detections.json does."""
    return [
        {
            "image_id": 1 + index,
            "file_name": f"{index}.jpg",
            "category_id": 5,
            "category_index": row["category_index"],
            "category_name": row["category_name"],
            "score": row["score"],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "segmentation": row["rle"],
        }
        for index, row in enumerate(rows)
        for x0, y0, x1, y1 in [row["box_xyxy"]]
    ]


def test_tables_rows_and_results_files_have_the_same_objects(rows):
    for given in (pd.DataFrame(rows), rows):
        found = list_objects(given)
        assert [each.category_name for each in found] == ["c0", "c1"]
        assert [each.score for each in found] == [0.9, 0.65]
        for each, mask, box in zip(found, MASKS, BOXES, strict=True):
            np.testing.assert_array_equal(each.mask, mask > 0)
            assert each.box_xyxy == box
    (one,) = list_objects(to_results(rows), image="1.jpg")
    np.testing.assert_array_equal(one.mask, MASKS[1] > 0)
    assert one.box_xyxy == pytest.approx(BOXES[1])
    assert list_objects(pd.DataFrame([])) == []


def test_a_crop_holds_the_whole_mask_and_the_whole_box(rows):
    height, width = SIZE_HW
    outside = list_objects(rows)[0]._replace(box_xyxy=(30.0, 30.0, 31.0, 31.0))
    empty = outside._replace(mask=np.zeros(SIZE_HW, bool))
    for found in (*list_objects(rows), outside, empty):
        (x, y, w, h), mask = crop_mask(found)
        left, top = round(x * width), round(y * height)
        assert mask.shape == (round(h * height), round(w * width))
        assert mask.size > 0
        pasted = np.zeros(SIZE_HW, bool)
        pasted[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
        np.testing.assert_array_equal(pasted, found.mask)
        x0, y0, x1, y1 = found.box_xyxy
        assert left <= x0
        assert top <= y0
        assert left + mask.shape[1] >= x1
        assert top + mask.shape[0] >= y1


def test_several_photos_and_photos_without_a_prediction_are_explained(rows):
    rows[1]["image_index"] = 3
    with pytest.raises(DatasetError, match="belong to 2 photos; choose one: image=0"):
        list_objects(rows)
    assert [each.category_name for each in list_objects(rows, image=3)] == ["c1"]
    assert list_objects(rows, image=7) == []
    rows[1] = dict.fromkeys(rows[1]) | {"image_index": 3, "error": "b.jpg: truncated"}
    with pytest.raises(DatasetError, match=r"was not predicted: b\.jpg: truncated"):
        list_objects(rows, image=3)
    with pytest.raises(DatasetError, match="got a Model"):
        list_objects(type("Model", (), {})())
    with pytest.raises(DatasetError, match=r"has no score; .* change"):
        list_objects([{"image_index": 0, "rle": {}, "change": 0.1}])


def test_a_missing_library_is_named(rows, monkeypatch):
    def fail(name):
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(adapters.importlib, "import_module", fail)
    for convert, name in ((to_supervision, "supervision"), (to_fiftyone, "fiftyone")):
        with pytest.raises(SetupError, match=f"not installed; type: pip install {name}"):
            convert(rows)


def test_supervision_has_masks_boxes_and_names(rows, label_row):
    supervision = pytest.importorskip("supervision")
    found = to_supervision(pd.DataFrame(rows))
    assert isinstance(found, supervision.Detections)
    np.testing.assert_array_equal(found.mask, np.stack(MASKS) > 0)
    np.testing.assert_allclose(found.xyxy, BOXES, rtol=1e-6)
    np.testing.assert_allclose(found.confidence, [0.9, 0.65], rtol=1e-6)
    assert found.class_id.tolist() == [0, 1]
    assert found.data["class_name"].tolist() == ["c0", "c1"]
    assert found[found.confidence > 0.8].data["class_name"].tolist() == ["c0"]
    scene = np.zeros((*SIZE_HW, 3), np.uint8)
    drawn = supervision.MaskAnnotator().annotate(scene.copy(), found)
    np.testing.assert_array_equal(drawn.any(axis=2), (MASKS[0] | MASKS[1]) > 0)
    none = to_supervision([])
    assert len(none) == 0
    assert len(supervision.Detections.merge([none, found])) == 2
    classes = to_supervision([label_row])
    assert classes.confidence is None
    assert classes.class_id.tolist() == [0, 7, 40]
    assert classes.mask.sum() == SIZE_HW[0] * SIZE_HW[1]


def test_fiftyone_draws_every_pixel_where_it_is(rows, label_row):
    fiftyone = pytest.importorskip("fiftyone")
    found = to_fiftyone(rows)
    assert isinstance(found, fiftyone.Detections)
    for each, mask, row in zip(found.detections, MASKS, rows, strict=True):
        assert each.label == row["category_name"]
        assert each.confidence == row["score"]
        drawn = each.to_segmentation(frame_size=SIZE_HW[::-1], target=255).mask
        np.testing.assert_array_equal(drawn > 0, mask > 0)
    assert to_fiftyone([]).detections == []
    segmentation = to_fiftyone([label_row])
    np.testing.assert_array_equal(segmentation.mask, MASKS[0] * 7 + MASKS[1] * 40)
