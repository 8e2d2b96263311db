import json

import pytest

from pipeline.data.problems import (
    ProblemCounts,
    encode_rejects,
    format_problems,
    make_problem,
)
from pipeline.data.sources.coco import read_annotations
from pipeline.errors import DatasetError, StorageError


def _file(tmp_path, **changes):
    image = {"id": 5, "file_name": "a/b.jpg", "height": 10, "width": 20}
    entry = {
        "id": 1,
        "image_id": 5,
        "category_id": 9,
        "bbox": [1, 1, 5, 5],
        "segmentation": [[1, 1, 6, 1, 6, 6]],
        "area": 12.5,
        "iscrowd": 0,
    }
    doc = {
        "images": [image],
        "annotations": [entry],
        "categories": [{"id": 9, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    for path, value in changes.items():
        table, key = path.split("__")
        if value is KeyError:
            del doc[table][0][key]
        else:
            doc[table][0][key] = value
    return _write(tmp_path, doc), doc


def _write(tmp_path, doc):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(doc))
    return str(path)


def test_orders_images_annotations_and_categories_by_id(tmp_path):
    path, doc = _file(tmp_path)
    doc["images"].insert(0, {**doc["images"][0], "id": 7, "file_name": "b.jpg"})
    doc["annotations"].insert(0, {**doc["annotations"][0], "id": 4})
    coco = read_annotations(_write(tmp_path, doc))
    assert not coco.problems
    assert [image["id"] for image in coco.images] == [5, 7]
    assert [entry["id"] for entry in coco.images[0]["annotations"]] == [1, 4]
    # An image without annotations is a sample, too.
    assert not coco.images[1]["annotations"]
    assert [(each.category_id, each.category_index, each.name) for each in coco.categories] == [
        (2, 0, "dog"),
        (9, 1, "cat"),
    ]
    assert path


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"images__height": KeyError}, "image_entry"),
        ({"images__width": "20"}, "image_entry"),
        ({"images__width": 0}, "image_entry"),
        ({"images__id": 5.0}, "image_entry"),
        ({"images__id": True}, "image_entry"),
        ({"images__file_name": 7}, "image_entry"),
        ({"images__file_name": "\ud800.jpg"}, "image_entry"),
        ({"images__file_name": "x" * 300}, "image_entry"),
        ({"annotations__area": -1}, "annotation_entry"),
        ({"annotations__area": 10**400}, "annotation_entry"),
        ({"annotations__bbox": [1, 2, 3]}, "annotation_entry"),
        ({"annotations__bbox": [1, 2, 3, "4"]}, "annotation_entry"),
        ({"annotations__segmentation": None}, "annotation_entry"),
        ({"annotations__segmentation": {"size": [10, 20]}}, "annotation_entry"),
        ({"annotations__segmentation": [1, 1, 6, 1, 6, 6]}, "annotation_entry"),
        ({"annotations__iscrowd": None}, "annotation_entry"),
        ({"annotations__area": "12"}, "annotation_entry"),
        ({"annotations__id": None}, "annotation_entry"),
        ({"annotations__image_id": 6}, "unknown_image"),
        ({"annotations__category_id": 1}, "unknown_category"),
        ({"categories__id": "9"}, "category_entry"),
        ({"categories__id": 2}, "category_entry"),
        ({"categories__name": KeyError}, "category_entry"),
    ],
)
def test_finds_the_problem_of_an_entry(tmp_path, change, kind):
    path, _ = _file(tmp_path, **change)
    assert kind in {problem.kind for problem in read_annotations(path).problems}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"annotations__image_id": 5.0}, "image_id is 5.0, which must be written without a point"),
        ({"annotations__id": None}, "entry 0 of annotations: id is None"),
        ({"images__id": KeyError}, "entry 0 of images: id missing"),
    ],
)
def test_the_reason_tells_where_and_the_rule(tmp_path, change, reason):
    path, _ = _file(tmp_path, **change)
    assert reason in [problem.reason for problem in read_annotations(path).problems]


@pytest.mark.parametrize("table", ["images", "annotations", "categories"])
@pytest.mark.parametrize("number", [2**63, -(2**70)])
def test_an_id_beyond_64_bits_is_named(tmp_path, table, number):
    path, _ = _file(tmp_path, **{f"{table}__id": number})
    (problem,) = [each for each in read_annotations(path).problems if "64" in each.reason]
    assert f"id is {number}, which does not fit into 64 bits" in problem.reason


@pytest.mark.parametrize(
    "name",
    [
        "../x.jpg",
        "a/../../x.jpg",
        "/etc/passwd",
        "..",
        "a\\..\\x.jpg",
        "C:/x.jpg",
        "file:///etc/passwd",
        "s3://bucket/x.jpg",
        "x\0.jpg",
    ],
)
def test_a_name_that_leaves_the_folder_always_stops(tmp_path, name):
    path, _ = _file(tmp_path, images__file_name=name)
    problems = read_annotations(path).problems
    assert [each.kind for each in problems if each.severity == "stop"] == ["path_outside_root"]


def test_a_backslash_is_named(tmp_path):
    path, _ = _file(tmp_path, images__file_name="JPEGImages\\x.jpg")
    (problem,) = (each for each in read_annotations(path).problems if each.severity == "stop")
    assert "it has a backslash, as on Windows; write 'JPEGImages/x.jpg'" in problem.reason


@pytest.mark.parametrize("name", ["x.jpg", "a/b/x.jpg", "..x.jpg", "a..b/x.jpg", "x y,z.jpg"])
def test_a_name_inside_the_folder_passes(tmp_path, name):
    path, _ = _file(tmp_path, images__file_name=name)
    assert not read_annotations(path).problems


def test_duplicate_ids_keep_the_first_and_report_the_second(tmp_path):
    _, doc = _file(tmp_path)
    doc["images"].append({**doc["images"][0], "file_name": "second.jpg"})
    doc["annotations"].append({**doc["annotations"][0], "bbox": [0, 0, 9, 9]})
    coco = read_annotations(_write(tmp_path, doc))
    assert [image["file_name"] for image in coco.images] == ["a/b.jpg"]
    assert [entry["bbox"] for entry in coco.images[0]["annotations"]] == [[1, 1, 5, 5]]
    assert {each.kind: json.loads(each.raw) for each in coco.problems} == {
        "duplicate_image_id": doc["images"][1],
        "duplicate_annotation_id": doc["annotations"][1],
    }


def test_an_annotation_of_an_invalid_image_is_reported_as_such(tmp_path):
    path, _ = _file(tmp_path, images__width=-3)
    reasons = [each.reason for each in read_annotations(path).problems]
    assert reasons == ["width is -3", "image_id is 5, whose entry is invalid"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [', "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
        ('[{"image_id": 1}]', "a list is a results file"),
        ('{"images": {}, "annotations": []}', "images is an object, categories is missing"),
        ('{"images": [], "annotations": [], "categories": []}', "no images and no categories"),
        ("\xff\xfe", "not readable as JSON"),
    ],
)
def test_refuses_files_that_are_not_annotation_files(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DatasetError, match=message):
        read_annotations(str(path))


def test_a_missing_file_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="no such file"):
        read_annotations(str(tmp_path / "x.json"))


def test_entries_of_any_type_become_problems(tmp_path):
    _, doc = _file(tmp_path)
    for table in ("images", "annotations"):
        doc[table] += [None, 3, "x", [], {}, {"id": {}, "image_id": [], "bbox": 5}]
    problems = read_annotations(_write(tmp_path, doc)).problems
    assert ProblemCounts(problems).counts == {"image_entry": 6, "annotation_entry": 6}
    assert format_problems(ProblemCounts(problems))


@pytest.mark.parametrize("reason", ["it starts with '\ud800:'", "\x1b[2J"])
def test_a_reason_is_text_that_a_terminal_shows_and_parquet_stores(reason):
    problem = make_problem("image_entry", reason, {"id": 1})
    assert problem.reason.isprintable()
    assert encode_rejects([problem])
