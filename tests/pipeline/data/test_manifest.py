import json
from dataclasses import replace

import pytest

from pipeline import storage
from pipeline.data.manifest import Category, Manifest, ShardInfo, read_manifest, write_manifest
from pipeline.errors import DatasetError, StorageError

MANIFEST = Manifest(
    categories=(
        Category(category_id=3, category_index=0, name="car"),
        Category(category_id=90, category_index=1, name="toothbrush"),
    ),
    shards=(ShardInfo(file="part-00000.parquet", rows=40, row_groups=(32, 8)),),
    images=40,
    annotations=7,
    fingerprint="abc",
    rejects={"image_missing": 2},
)


def test_is_read_as_written(tmp_path):
    write_manifest(str(tmp_path), MANIFEST)
    assert read_manifest(str(tmp_path)) == MANIFEST


def test_a_folder_without_a_manifest_is_reported_with_the_next_command(tmp_path):
    with pytest.raises(DatasetError, match=r"ingest has not finished.*python jobs/ingest.py coco"):
        read_manifest(str(tmp_path))


def test_a_wrong_split_is_answered_with_those_that_are_there(tmp_path):
    for name in ("train", "val", "photos"):
        (tmp_path / name).mkdir()
    for name in ("train", "val"):
        write_manifest(str(tmp_path / name), MANIFEST)
    for wrong in (tmp_path, tmp_path / "vall"):
        with pytest.raises(DatasetError, match=rf"{tmp_path} holds the shards of train, val\. "):
            read_manifest(str(wrong))


def test_a_folder_that_cannot_be_listed_gives_no_suggestion(tmp_path, monkeypatch):
    def refuse(uri):
        raise StorageError(f"{uri} cannot be listed")

    monkeypatch.setattr(storage, "list_folder", refuse)
    with pytest.raises(DatasetError, match=r"ingest has not finished\. Create"):
        read_manifest(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 41}, "do not add up to 41 images"),
        ({"schema_version": 99}, "schema version 99"),
        ({"task": "poetry"}, "task: Input should be 'instance' or 'semantic'"),
        (
            {"shards": (ShardInfo(file="part-00000.parquet", rows=40, row_groups=(32,)),)},
            "row groups of a shard",
        ),
        (
            {"shards": (ShardInfo(file="../part-00000.parquet", rows=40, row_groups=(40,)),)},
            "outside the folder",
        ),
        ({"shards": (ShardInfo(file="..", rows=40, row_groups=(40,)),)}, "outside the folder"),
        (
            {"shards": (ShardInfo(file="a", rows=40, row_groups=(41, -1)),)},
            "a row group has a negative number of rows",
        ),
        ({"shards": (ShardInfo(file=7, rows=40, row_groups=(40,)),)}, "shards.0.file: "),
        ({"images": "40"}, "images: Input should be a valid integer"),
        ({"rejects": True}, "rejects: "),
        ({"categories": MANIFEST.categories[1:]}, "category_index"),
    ],
)
def test_refuses_a_manifest_that_contradicts_itself(tmp_path, changes, message):
    write_manifest(str(tmp_path), replace(MANIFEST, **changes))
    with pytest.raises(DatasetError, match=message):
        read_manifest(str(tmp_path))


@pytest.mark.parametrize("text", ["{", "[]", '{"schema_version": 1}', "[" * 700 + "]" * 700])
def test_a_damaged_manifest_is_a_dataset_error(tmp_path, text):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DatasetError, match="ingest again"):
        read_manifest(str(tmp_path))


def test_instance_shards_of_version_1_are_still_read(tmp_path):
    write_manifest(str(tmp_path), MANIFEST)
    path = tmp_path / "dataset.json"
    old = json.loads(path.read_text())
    for added in ("federated", "category_images", "category_px"):
        del old[added]
    old["categories"] = [
        {name: each[name] for name in ("category_id", "category_index", "name")}
        for each in old["categories"]
    ]
    path.write_text(json.dumps({**old, "schema_version": 1}))
    assert read_manifest(str(tmp_path)) == replace(MANIFEST, schema_version=1)


def test_categories_compare_equal_with_other_frequencies():
    category = MANIFEST.categories[0]
    assert replace(category, frequency="r") == category
    assert replace(category, name="bus") != category


def test_does_not_depend_on_the_location(tmp_path):
    write_manifest(str(tmp_path), MANIFEST)
    assert str(tmp_path) not in (tmp_path / "dataset.json").read_text()
    assert json.loads((tmp_path / "dataset.json").read_text())["fingerprint"] == "abc"
