"""Ingest judges a data set as a whole: valid entries alone do not mean that it can be learned."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.data import source_index
from pipeline.data.audit import audit
from pipeline.data.ingest import CocoIngest, ingest_dataset
from pipeline.data.ingest_config import CityscapesIngest, LvisIngest, SemanticIngest
from pipeline.data.learnable import describe_gaps, describe_unlearnable
from pipeline.data.manifest import read_manifest
from pipeline.data.problems import ProblemCounts, format_problems
from pipeline.errors import DatasetError, StorageError
from tests.pipeline.data import lvis_samples
from tests.pipeline.data.coco_samples import SPLIT, load, save, small_coco
from tests.pipeline.data.street_samples import blocks, cityscapes, label_maps


@pytest.fixture
def coco(tmp_path):
    return small_coco(tmp_path / "coco", images=8)


def coco_config(root, **changes) -> CocoIngest:
    return CocoIngest(root=str(root), split=SPLIT, out=f"{root}/out", workers=0, **changes)


def rows(root) -> list[dict]:
    files = [shard.file for shard in read_manifest(f"{root}/out").shards]
    return [row for file in files for row in pq.read_table(f"{root}/out/{file}").to_pylist()]


def change_annotations(root, change) -> dict:
    doc = load(root)
    for entry in doc["annotations"]:
        change(entry)
    save(root, doc)
    return doc


def test_an_object_that_is_there_twice_is_a_notice_that_names_the_first(coco):
    doc = load(coco)
    one = doc["annotations"][0]
    doc["annotations"].append({**one, "id": 900})
    others = {entry["category_id"] for entry in doc["annotations"]} - {one["category_id"]}
    # With another category it is another object.
    doc["annotations"].append({**one, "id": 901, "category_id": min(others)})
    save(coco, doc)
    result = ingest_dataset(coco_config(coco))
    assert (result["annotations"], result["rejects"]) == (len(doc["annotations"]), 0)
    assert read_manifest(f"{coco}/out").notices == {"object_twice": 1}


def test_what_was_left_out_is_counted_to_the_last_annotation(coco, caplog):
    caplog.set_level("INFO")
    doc = load(coco)
    gone, kept, third = doc["images"][:3]
    with_image = [each for each in doc["annotations"] if each["image_id"] == gone["id"]]
    own = next(each for each in doc["annotations"] if each["image_id"] == kept["id"])
    own["bbox"] = [0, 0, 0, 0]
    # A merged file has one entry three times, and a name with a dot.
    doc["annotations"] += 2 * [doc["annotations"][-1]]
    third["file_name"] = f"./{third['file_name']}"
    save(coco, doc)
    folder = coco / SPLIT
    (folder / gone["file_name"]).rename(folder / "renamed.png")
    for number in range(4):
        (folder / f"more-{number}.JPG").write_bytes(b"")
    (folder / "notes.txt").write_text("no photo")
    result = ingest_dataset(coco_config(coco, on_bad="drop"))
    total = len(doc["annotations"])
    found = total - 3 - len(with_image)
    assert result["annotations"] == found
    expected = f"kept 7 of 8 images and {found} of {total} annotations; {len(with_image)} went with"
    assert expected in caplog.text
    # The missing photo is a problem of its own entry, and the renamed file has none.
    assert f"5 photos in {folder} without an entry, left out: more-0.JPG, more-1.JPG" in caplog.text


def test_a_store_that_lists_no_files_is_ingested_without_a_look_for_others(coco, monkeypatch):
    def refuse(uri):
        raise StorageError(f"{uri} cannot be listed")

    monkeypatch.setattr(source_index, "list_files", refuse)
    assert ingest_dataset(coco_config(coco))["images"] == 8


def test_a_table_of_problems_says_how_many_it_does_not_show():
    counts = ProblemCounts()
    counts.add("mask_empty", *(f"annotation {n}: no pixel" for n in range(5)), count=5)
    assert format_problems(counts).endswith("  and 2 more")


def test_a_missing_iscrowd_means_no_crowd_and_a_missing_area_the_masks(coco):
    whole = load(coco)

    def remove(entry):
        del entry["iscrowd"], entry["area"]

    count = len(change_annotations(coco, remove)["annotations"])
    result = ingest_dataset(coco_config(coco))
    assert (result["annotations"], result["rejects"]) == (count, 0)
    notices = read_manifest(f"{coco}/out").notices
    assert notices == {"area_missing": count, "iscrowd_missing": count}
    areas = {entry["id"]: entry["area"] for entry in whole["annotations"]}
    for row in rows(coco):
        assert not any(row["is_crowd"])
        assert row["area_px"] == [areas[number] for number in row["annotation_id"]]


@pytest.mark.parametrize("area", [0, 1])
def test_an_area_that_is_not_the_masks_is_a_notice(coco, area):
    doc = change_annotations(coco, lambda entry: entry.update(area=area))
    objects = sum(not entry["iscrowd"] for entry in doc["annotations"])
    ingest_dataset(coco_config(coco))
    assert read_manifest(f"{coco}/out").notices == {"area_off": objects}
    assert {value for row in rows(coco) for value in row["area_px"]} == {area}


@pytest.mark.parametrize("on_bad", ["stop", "drop", "fix"])
def test_a_data_set_of_crowds_alone_is_refused(coco, on_bad):
    count = len(change_annotations(coco, lambda entry: entry.update(iscrowd=1))["annotations"])
    message = f"all of its {count} annotations are crowds .*iscrowd 1.*write iscrowd 0"
    with pytest.raises(DatasetError, match=message):
        ingest_dataset(coco_config(coco, on_bad=on_bad))
    assert not (coco / "out" / "dataset.json").exists()


def test_a_drop_that_leaves_no_annotation_is_refused(coco):
    doc = change_annotations(coco, lambda entry: entry["bbox"].__setitem__(2, 0))
    count = len(doc["annotations"])
    message = rf"0 of {count} annotations in .* can be kept(.|\n)*box_empty +{count}"
    with pytest.raises(DatasetError, match=message):
        ingest_dataset(coco_config(coco, on_bad="drop"))
    assert not (coco / "out" / "dataset.json").exists()


def test_lvis_without_a_category_of_coco_is_refused(tmp_path):
    root = lvis_samples.lvis(tmp_path / "lvis")
    doc = lvis_samples.load(root)
    doc["annotations"] = [each | {"category_id": 1} for each in doc["annotations"]]
    lvis_samples.save(root, doc)
    config = LvisIngest(root=str(root), split="val", out=f"{root}/out", workers=0)
    assert ingest_dataset(config)["annotations"] > 0
    config = replace(config, out=f"{root}/star", only_coco_categories=True)
    with pytest.raises(DatasetError, match=r"0 of .* annotations .* can be kept"):
        ingest_dataset(config)


def test_a_split_without_labels_may_be_meant_and_is_told(coco, tmp_path, caplog):
    save(coco, load(coco) | {"annotations": []})
    assert ingest_dataset(coco_config(coco))["annotations"] == 0
    assert "there is nothing to learn or to measure" in caplog.text
    assert "2 of 2 categories have no object: star, blob" in caplog.text

    # The test split of Cityscapes has no labels either.
    caplog.clear()
    root = cityscapes(tmp_path / "streets", frames=2)
    for path in root.rglob("*_instanceIds.png"):
        Image.fromarray(np.full((48, 96), 7, np.uint16)).save(path)
    out = f"{root}/out"
    ingest_dataset(CityscapesIngest(root=str(root), split="train", out=out, workers=0))
    assert "it has no annotation" in caplog.text


def test_a_category_without_object_is_told(coco, caplog):
    change_annotations(coco, lambda entry: entry.update(category_id=3))
    ingest_dataset(coco_config(coco))
    assert "1 of 2 categories have no object: blob" in caplog.text
    assert "nothing to learn" not in caplog.text
    assert "1 of 2 categories have no object: blob" in audit_text(coco, caplog)


def audit_text(root, caplog) -> str:
    caplog.clear()
    audit(f"{root}/out")
    return caplog.text


def test_categories_of_one_name_are_told(coco, caplog):
    doc = load(coco)
    save(coco, doc | {"categories": [each | {"name": "blob"} for each in doc["categories"]]})
    ingest_dataset(coco_config(coco))
    assert "several categories have the same name: blob" in caplog.text


def maps_config(root, **changes) -> SemanticIngest:
    given = {"root": str(root), "split": "train", "out": f"{root}/out", "workers": 0, **changes}
    return SemanticIngest(**given)


def test_masks_of_0_and_255_are_told(tmp_path, caplog):
    root = label_maps(tmp_path / "maps")
    for number in range(4):
        mask = np.where(blocks(number) == 1, 255, 0).astype(np.uint8)
        Image.fromarray(mask).save(root / "labels" / "train" / f"p{number}.png")
    ingest_dataset(maps_config(root, classes=("background", "polyp")))
    assert "background is the only class with a pixel" in caplog.text
    assert "in masks of 0 and 255" in caplog.text
    assert "1 of 2 categories have no pixel: polyp" in caplog.text


def test_labels_of_void_alone_are_told(tmp_path, caplog):
    root = label_maps(tmp_path / "maps")
    for path in (root / "labels" / "train").iterdir():
        Image.fromarray(np.full((48, 96), 255, np.uint8)).save(path)
    ingest_dataset(maps_config(root))
    assert "no pixel has a class" in caplog.text
    assert "3 of 3 categories have no pixel: ground, house, tree" in caplog.text


def test_one_class_and_void_can_be_learned(tmp_path, caplog):
    root = label_maps(tmp_path / "maps")
    ingest_dataset(maps_config(root, classes=("any",), void=(1, 2, 255)))
    assert "ingest: images and labels of train: " not in caplog.text


def test_manifests_of_earlier_versions_are_not_judged_by_what_they_lack(coco):
    ingest_dataset(coco_config(coco))
    manifest = read_manifest(f"{coco}/out")
    assert not describe_unlearnable(replace(manifest, category_images=()))
    assert not describe_gaps(replace(manifest, category_images=()))
    assert not describe_unlearnable(replace(manifest, task="semantic", category_px=()))


def test_two_entries_of_one_file_keep_the_first(coco):
    doc = load(coco)
    first = min(doc["images"], key=lambda image: image["id"])
    second = first | {"id": 5000, "file_name": f"./{first['file_name']}"}
    entry = doc["annotations"][0] | {"id": 9000, "image_id": 5000}
    save(
        coco,
        doc | {"images": [*doc["images"], second], "annotations": [*doc["annotations"], entry]},
    )
    with pytest.raises(DatasetError, match=f"it is the file of image {first['id']}"):
        ingest_dataset(coco_config(coco))
    result = ingest_dataset(coco_config(coco, on_bad="drop"))
    assert (result["images"], result["rejects"]) == (8, 2)
    assert read_manifest(f"{coco}/out").rejects == {"file_twice": 1, "unknown_image": 1}
    lost = pq.read_table(f"{coco}/out/rejects.parquet")["raw"].to_pylist()
    assert second in [json.loads(each) for each in lost]
