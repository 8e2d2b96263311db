"""Ingest of LVIS and LVIS* from folders and zips; the annotations can be rebuilt from the rows."""

import json
import shutil
import zipfile
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.data.audit import audit
from pipeline.data.ingest import ingest_dataset
from pipeline.data.ingest_config import CocoIngest, LvisIngest
from pipeline.data.manifest import read_manifest
from pipeline.data.schema import FEDERATED, FEDERATED_SCHEMA
from pipeline.data.sources.coco_synsets import COCO_CATEGORIES
from pipeline.errors import DatasetError, StorageError
from pipeline.evaluation.split_reader import truth_from_shards
from tests.pipeline.data.coco_samples import small_coco
from tests.pipeline.data.lvis_samples import load, lvis, save
from tests.pipeline.data.street_samples import zip_folders


def config(root, **changes) -> LvisIngest:
    given = {"root": str(root), "split": "val", "out": f"{root}/out", "workers": 0, **changes}
    return LvisIngest(**given)


def truth_of(out: str) -> dict:
    """Read the truth of an evaluation from the shards, in a form to compare."""
    truth = truth_from_shards(out)
    images = {
        image["id"]: {**{key: image[key] for key in FEDERATED}, "annotations": []}
        for image in truth["images"]
    }
    for each in truth["annotations"]:
        images[each["image_id"]]["annotations"].append((each["category_id"], each["area"]))
    return {
        "images": images,
        "categories": {each["id"]: each["frequency"] for each in truth["categories"]},
    }


def truth_in(doc: dict, new_id: dict[int, int] | None = None) -> dict:
    """Make the same from an LVIS file, with category ids replaced or dropped by new_id."""
    new_id = new_id or {each["id"]: each["id"] for each in doc["categories"]}

    def remap(old: list[int]) -> list[int]:
        return [new_id[each] for each in old if each in new_id]

    return {
        "images": {
            image["id"]: {
                **{key: remap(image[key]) for key in FEDERATED},
                "annotations": [
                    (new_id[each["category_id"]], each["area"])
                    for each in doc["annotations"]
                    if each["image_id"] == image["id"] and each["category_id"] in new_id
                ],
            }
            for image in doc["images"]
        },
        "categories": {
            new_id[each["id"]]: each["frequency"]
            for each in doc["categories"]
            if each["id"] in new_id
        },
    }


@pytest.fixture
def root(tmp_path):
    return lvis(tmp_path / "lvis")


@pytest.mark.parametrize("version", ["v1", "v0.5"])
def test_the_annotations_can_be_rebuilt_from_the_shards(tmp_path, version):
    root = lvis(tmp_path / "lvis", version=version)
    result = ingest_dataset(config(root, version=version))
    doc = load(root, version)
    assert (result["images"], result["annotations"]) == (6, len(doc["annotations"]))
    assert truth_of(f"{root}/out") == truth_in(doc)
    assert pq.read_schema(root / "out" / "part-00000.parquet").equals(FEDERATED_SCHEMA)
    rows = pq.read_table(root / "out" / "part-00000.parquet").to_pylist()
    assert rows[0]["file_name"] == "train2017/000000007000.jpg"
    assert rows[1]["image"] == (root / rows[1]["file_name"]).read_bytes()
    assert audit(f"{root}/out", deep=True)["problems"] == 0
    manifest = read_manifest(f"{root}/out")
    assert manifest.federated
    shown = {(each["image_id"], each["category_id"]) for each in doc["annotations"]}
    counts = Counter(category_id for _, category_id in shown)
    assert manifest.category_images == tuple(counts[each["id"]] for each in doc["categories"])


def test_lvis_star_keeps_all_images_under_cocos_ids(root):
    result = ingest_dataset(config(root, only_coco_categories=True))
    doc = load(root)
    found = truth_of(f"{root}/out")
    expected = truth_in(doc, {2: 3, 3: 21, 5: 1, 9: 24})
    assert result["images"] == 6
    assert found["images"] == expected["images"]
    assert found["categories"] == expected["categories"]
    # Models trained on COCO have all 80 categories, even those that LVIS lacks.
    categories = read_manifest(f"{root}/out").categories
    assert [e.category_id for e in categories] == [e.category_id for e in COCO_CATEGORIES]
    names = {e.category_id: e.name for e in categories}
    assert (names[1], names[3], names[21]) == ("person", "car", "cow")
    # LVIS and LVIS* are different data sets.
    with pytest.raises(DatasetError, match="--overwrite"):
        ingest_dataset(config(root))


def test_coco_categories_equal_the_official_ones(real_data):
    doc = json.loads((real_data / "coco_mini/annotations/instances_val2017.json").read_text())
    listed = [(each["id"], each["name"]) for each in doc["categories"]]
    assert [each[:2] for each in COCO_CATEGORIES] == sorted(listed)
    lvis_doc = json.loads((real_data / "lvis_mini/lvis_v0.5_val_tiny.json").read_text())
    synsets = {each["synset"] for each in lvis_doc["categories"]}
    missing = [each.name for each in COCO_CATEGORIES if each.synset not in synsets]
    assert missing == ["hot dog", "oven"]


def test_images_and_annotations_may_stay_in_their_zips(root):
    with zipfile.ZipFile(root / "lvis_v1_val.json.zip", "w") as out:
        out.write(root / "lvis_v1_val.json", "lvis_v1_val.json")
    before = ingest_dataset(config(root, out=f"{root}/before"))
    (root / "lvis_v1_val.json").unlink()
    zip_folders(root, "train2017.zip", "train2017")
    zip_folders(root, "val2017.zip", "val2017")
    assert ingest_dataset(config(root))["fingerprint"] == before["fingerprint"]


def test_photos_may_be_in_one_folder(root):
    (root / "photos").mkdir()
    for part in ("train2017", "val2017"):
        for path in (root / part).iterdir():
            path.rename(root / "photos" / path.name)
        (root / part).rmdir()
    with pytest.raises(
        DatasetError, match=r"(?s)train2017/ with 2 of the images is not in .*--images"
    ):
        ingest_dataset(config(root))
    assert ingest_dataset(config(root, images=f"{root}/photos"))["images"] == 6


def _unknown_category(doc):
    doc["images"][1]["neg_category_ids"] = [1, 4]


def _image_entry(doc):
    doc["images"][1]["not_exhaustive_category_ids"] = "none"


def _no_url(doc):
    del doc["images"][1]["coco_url"]


def _polygon_short(doc):
    doc["annotations"][0]["segmentation"] = [[1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (_unknown_category, "unknown_category"),
        (_image_entry, "image_entry"),
        (_no_url, "image_entry"),
        (_polygon_short, "polygon_short"),
    ],
)
def test_each_kind_of_damage_is_reported_and_dropped(root, damage, kind):
    doc = load(root)
    damage(doc)
    save(root, doc)
    with pytest.raises(DatasetError, match=kind):
        ingest_dataset(config(root))
    ingest_dataset(config(root, on_bad="drop"))
    assert read_manifest(f"{root}/out").rejects[kind] >= 1
    if kind == "unknown_category":
        assert truth_of(f"{root}/out")["images"][7001]["neg_category_ids"] == [1]


def test_a_category_without_a_known_frequency_always_stops(root):
    doc = load(root)
    doc["categories"][0]["frequency"] = "often"
    save(root, doc)
    with pytest.raises(DatasetError, match=r"category_entry.*\n.*frequency is 'often'"):
        ingest_dataset(config(root, on_bad="drop"))


def test_a_file_of_another_format_is_reported_with_the_right_command(root, tmp_path):
    coco = small_coco(tmp_path / "coco", images=3)
    file = f"{coco}/annotations/instances_tiny.json"
    with pytest.raises(DatasetError, match=r"no neg_category_ids, .* no synset.*ingest\.py coco"):
        ingest_dataset(config(root, annotations=file))
    given = {"root": str(root), "split": "val2017", "out": f"{root}/out", "workers": 0}
    with pytest.raises(DatasetError, match=r"is an LVIS file; use: python jobs/ingest\.py lvis"):
        ingest_dataset(CocoIngest(annotations=f"{root}/lvis_v1_val.json", **given))
    panoptic = json.loads((coco / "annotations" / "instances_tiny.json").read_text())
    panoptic["annotations"] = [{"segments_info": [], "image_id": 1000, "file_name": "x.png"}]
    (root / "panoptic.json").write_text(json.dumps(panoptic))
    with pytest.raises(DatasetError, match="is a panoptic file"):
        ingest_dataset(CocoIngest(annotations=f"{root}/panoptic.json", **given))


def test_missing_files_are_reported_with_the_existing_ones_and_the_download(root):
    with pytest.raises(DatasetError, match=r"lvis_v1_train\.json is not in .*lvis_v1_val\.json"):
        ingest_dataset(config(root, split="train"))
    with pytest.raises(DatasetError, match=r"nowhere does not exist.*lvisdataset\.org"):
        ingest_dataset(config(root, images="nowhere"))
    shutil.rmtree(root / "val2017")
    with pytest.raises(DatasetError, match=r"(?s)val2017/ with 4 of the images .*cocodataset\.org"):
        ingest_dataset(config(root))
    (root / "val2017.zip").write_bytes(b"PK half of it")
    with pytest.raises(StorageError, match=r"val2017\.zip is not a complete zip"):
        ingest_dataset(config(root))


def test_coco_may_stay_in_its_zips_too(tmp_path):
    root = small_coco(tmp_path / "coco", images=5)
    given = {"root": str(root), "split": "tiny", "workers": 0}
    before = ingest_dataset(CocoIngest(out=f"{root}/before", **given))
    zip_folders(root, "annotations_trainval2017.zip", "annotations")
    zip_folders(root, "tiny.zip", "tiny")
    after = ingest_dataset(CocoIngest(out=f"{root}/after", **given))
    assert before["fingerprint"] == after["fingerprint"]


def test_real_lvis(real_data, tmp_path):
    path = real_data / "lvis_mini"
    given = {"split": "val_tiny", "version": "v0.5"}
    ingest_dataset(config(path, out=f"{tmp_path}/all", **given))
    doc = json.loads((path / "lvis_v0.5_val_tiny.json").read_text())
    found, expected = truth_of(f"{tmp_path}/all"), truth_in(doc)
    assert found["categories"] == expected["categories"]
    for image_id, image in expected["images"].items():
        mine = found["images"][image_id]
        assert [mine[key] for key in FEDERATED] == [image[key] for key in FEDERATED]
        for (category_id, area), kept in zip(
            image["annotations"], mine["annotations"], strict=True
        ):
            assert kept == (category_id, np.float32(area))
    only = ingest_dataset(config(path, out=f"{tmp_path}/coco", only_coco_categories=True, **given))
    synset = {each.synset for each in COCO_CATEGORIES}
    kept = {each["id"] for each in doc["categories"] if each["synset"] in synset}
    assert only["annotations"] == sum(e["category_id"] in kept for e in doc["annotations"])
    assert only["images"] == 7


@pytest.mark.parametrize("synset", [{}, [], 7, None])
def test_a_synset_that_is_no_text_is_reported(root, synset):
    doc = load(root)
    doc["categories"][0]["synset"] = synset
    save(root, doc)
    with pytest.raises(DatasetError, match="category_entry"):
        ingest_dataset(config(root, only_coco_categories=True))
