"""A truth and its detections are checked together, and normalized for the evaluators."""

import copy
import math

import pytest
from pycocotools import mask as mask_api

from pipeline.errors import DatasetError, StorageError
from pipeline.evaluation.coco_files import check_files, read_json, write_detections

SQUARE = [[10, 10, 30, 10, 30, 30, 10, 30]]


def make_truth(**first) -> dict:
    """Two images with an object each; `first` changes the first annotation."""
    annotation = {
        "id": 0, "image_id": 7, "category_id": 3, "bbox": [10, 10, 20, 20],
        "segmentation": SQUARE, "area": 400.0, "iscrowd": 0,
    }  # fmt: skip
    return {
        "images": [
            {"id": 7, "file_name": "a.jpg", "height": 40, "width": 50},
            {"id": 9, "file_name": "b.jpg", "height": 40, "width": 50},
        ],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [annotation | first, annotation | {"id": 5, "image_id": 9}],
    }


def make_detection(**values) -> dict:
    return {
        "image_id": 7, "category_id": 3, "score": 0.5, "bbox": [10, 10, 20, 20],
        "segmentation": SQUARE,
    } | values  # fmt: skip


def check(truth: object, detections: object):
    return check_files(truth, detections, masks=True, boxes=True)


def test_masks_become_rle_and_ids_start_at_1():
    found = check(make_truth(), [make_detection(), make_detection(image_id=9)])
    assert [each["id"] for each in found.annotations] == [1, 2]
    for each in (*found.annotations, *found.detections):
        assert mask_api.area(each["segmentation"]) == 400
    assert [each["score"] for each in found.detections] == [0.5, 0.5]
    assert found.notices == ()


def test_missing_areas_and_flags_are_filled_in_with_a_notice():
    truth = make_truth()
    del truth["annotations"][0]["area"], truth["annotations"][0]["iscrowd"]
    found = check(truth, [make_detection(), make_detection(image_id=9)])
    assert found.annotations[0]["area"] == 400
    assert found.annotations[0]["iscrowd"] == 0
    assert sorted(notice.partition(";")[0] for notice in found.notices) == [
        "1 annotations have no area",
        "1 annotations have no iscrowd",
    ]


def test_two_categories_of_one_name_stay_apart():
    truth = make_truth()
    truth["categories"].append({"id": 4, "name": "cat"})
    names = [each["name"] for each in check(truth, [make_detection()]).categories]
    assert names == ["cat (3)", "cat (4)"]


@pytest.mark.parametrize(
    ("change", "notice"),
    [
        ({"area": 0}, "1 annotations have an area that is far from"),
        ({"area": 1e-9}, "1 annotations have an area that is far from"),
    ],
)
def test_areas_that_do_not_fit_are_noted(change, notice):
    found = check(make_truth(**change), [make_detection(), make_detection(image_id=9)])
    assert any(each.startswith(notice) for each in found.notices)


def test_detections_of_few_images_are_noted():
    truth = make_truth()
    truth["images"] += [
        {"id": key, "file_name": f"{key}.jpg", "height": 4, "width": 4} for key in range(20, 24)
    ]
    (notice,) = check(truth, [make_detection()]).notices
    assert notice.startswith("5 of the truth's 6 images have no detection")
    (notice,) = check(make_truth(), []).notices
    assert notice == "no detections: every AP is 0"


def test_images_that_share_a_file_are_noted():
    truth = make_truth()
    truth["images"][1]["file_name"] = "a.jpg"
    (notice,) = check(truth, [make_detection(), make_detection(image_id=9)]).notices
    assert notice.startswith("1 files are those of several images, such as 'a.jpg'")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"image_id": 8}, "image_id 8"),
        ({"image_id": "7"}, "image_id '7'"),
        ({"image_id": 7.0}, "image_id 7.0"),
        ({"image_id": True}, "image_id True"),
        ({"category_id": 4}, "category_id 4"),
        ({"bbox": [1, 2, -3, 4]}, "bbox [1, 2, -3, 4]"),
        ({"bbox": [1, 2, math.inf, 4]}, "bbox [1, 2, inf, 4]"),
        ({"bbox": [1, 2, 10**400, 4]}, "bbox"),
        ({"bbox": [1, 2, 3]}, "bbox [1, 2, 3]"),
        ({"segmentation": {"size": [9, 9], "counts": "0"}}, "[9, 9]"),
        ({"segmentation": [[1, 2]]}, "polygon"),
        ({"segmentation": None}, "None"),
        ({"iscrowd": 2}, "iscrowd 2"),
        ({"area": -1}, "area -1"),
        ({"area": math.nan}, "area nan"),
    ],
)
def test_a_bad_annotation_is_named(change, says):
    with pytest.raises(DatasetError) as error:
        check(make_truth(**change), [make_detection()])
    assert "annotations[0] (id 0)" in str(error.value)
    assert says in str(error.value)
    if not change.keys() & {"iscrowd", "area"}:
        with pytest.raises(DatasetError, match="entry 1") as error:
            check(make_truth(), [make_detection(), make_detection(**change)])
        assert says in str(error.value)


@pytest.mark.parametrize("score", [math.nan, math.inf, "0.5", None, True])
def test_a_score_that_is_no_number_is_named(score):
    with pytest.raises(DatasetError, match=r"entry 0: score"):
        check(make_truth(), [make_detection(score=score)])


@pytest.mark.parametrize("key", ["image_id", "category_id", "bbox", "segmentation", "score"])
def test_a_missing_key_is_named(key):
    detection = make_detection()
    del detection[key]
    with pytest.raises(DatasetError, match=f"entry 0: no {key}"):
        check(make_truth(), [detection])


@pytest.mark.parametrize(
    ("truth", "detections", "says"),
    [
        ([], [], "it holds a list"),
        ({"images": []}, [], "it holds keys ['images']"),
        (make_truth(), {"detections": []}, "it is a dict with keys ['detections']"),
        (make_truth(), "x", "it is a str"),
        (make_truth() | {"annotations": []}, [], "annotations is empty"),
        (make_truth(), [5], "entry 0: 5"),
        (make_truth() | {"images": [5]}, [], "images[0]: 5"),
    ],
)
def test_files_of_another_form_are_refused(truth, detections, says):
    with pytest.raises(DatasetError) as error:
        check(truth, detections)
    assert says in str(error.value)


def test_a_truth_of_crowds_only_is_refused():
    truth = make_truth()
    for each in truth["annotations"]:
        each["iscrowd"] = 1
    with pytest.raises(DatasetError, match="all 2 annotations are crowds"):
        check(truth, [make_detection()])


def test_ids_that_come_twice_are_named():
    truth = make_truth()
    truth["images"].append(copy.deepcopy(truth["images"][0]))
    truth["annotations"][1]["id"] = 0
    with pytest.raises(DatasetError) as error:
        check(truth, [make_detection()])
    assert "images: id 7" in str(error.value)
    assert "annotations: id 0" in str(error.value)


def test_problems_of_both_files_come_in_one_error():
    with pytest.raises(DatasetError) as error:
        check(make_truth(category_id=5), [make_detection(image_id=1), make_detection(score="x")])
    for part in ("category_id 5", "image_id 1", "score 'x'"):
        assert part in str(error.value)


def test_boxes_alone_need_no_masks_and_no_sizes():
    truth = make_truth()
    for entry in (*truth["images"], *truth["annotations"]):
        for key in ("height", "width", "segmentation"):
            entry.pop(key, None)
    found = check_files(truth, [make_detection()], masks=False, boxes=True)
    assert found.detections[0]["bbox"] == [10, 10, 20, 20]
    with pytest.raises(DatasetError, match="image 7"):
        check_files(truth, [make_detection()], masks=True, boxes=True)


def test_written_detections_are_read_back_and_a_change_is_found(tmp_path):
    path = tmp_path / "detections.json"
    write_detections(str(path), [make_detection()])
    assert read_json(str(path)) == [make_detection()]
    path.write_text(path.read_text().replace("0.5", "0.6"))
    with pytest.raises(StorageError, match="was changed after it was written"):
        read_json(str(path))


@pytest.mark.parametrize("data", [b"", b"{", b"[1, 2", b"\xff\xfe", b"[" * 10_000])
def test_what_is_no_json_is_refused_with_the_file(tmp_path, data):
    path = tmp_path / "truth.json"
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"truth\.json"):
        read_json(str(path))


def test_a_truth_with_a_list_twice_is_refused(tmp_path):
    path = tmp_path / "truth.json"
    path.write_text('{"annotations": [1, 2], "annotations": []}')
    with pytest.raises(DatasetError, match=r"has the key 'annotations' twice; join both into one$"):
        read_json(str(path))
