import hashlib
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from pipeline.data import ingest as ingest_module
from pipeline.data.augment import decode_row
from pipeline.data.dataset_files import FileContent
from pipeline.data.ingest import CocoIngest, choose_rows_per_shard, ingest_dataset
from pipeline.data.manifest import read_manifest
from pipeline.data.photo import check_image
from pipeline.data.schema import INSTANCE_SCHEMA
from pipeline.data.validate_image import validate_image
from pipeline.errors import DatasetError, StorageError
from tests.pipeline.data.coco_samples import (
    ALWAYS_STOPS,
    DAMAGE,
    SPLIT,
    Breaker,
    bomb_png,
    load,
    save,
    small_coco,
)


@pytest.fixture(scope="module")
def valid_root(tmp_path_factory):
    return small_coco(tmp_path_factory.mktemp("coco"), images=70)


@pytest.fixture
def coco(valid_root, tmp_path):
    """A copy to break."""
    return shutil.copytree(valid_root, tmp_path / "coco")


def _config(root, out, **changes):
    return CocoIngest(root=str(root), split=SPLIT, out=str(out), workers=0, **changes)


def _bytes(out: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir()}


def _rows(out: Path):
    files = [shard.file for shard in read_manifest(str(out)).shards]
    return [row for file in files for row in pq.read_table(out / file).to_pylist()]


def test_rows_hold_the_annotation_file(valid_root, tmp_path):
    result = ingest_dataset(_config(valid_root, tmp_path / "out", rows_per_shard=32))
    doc = load(valid_root)
    assert (result["images"], result["annotations"]) == (70, len(doc["annotations"]))
    assert (result["rejects"], result["shards"]) == (0, 3)

    manifest = read_manifest(str(tmp_path / "out"))
    assert [shard.row_groups for shard in manifest.shards] == [(32,), (32,), (6,)]
    assert pq.read_schema(tmp_path / "out" / "part-00000.parquet").equals(INSTANCE_SCHEMA)
    index = {each.category_id: each.category_index for each in manifest.categories}
    assert index == {3: 0, 7: 1}

    rows = _rows(tmp_path / "out")
    assert [row["image_id"] for row in rows] == sorted(image["id"] for image in doc["images"])
    assert any(not row["annotation_id"] for row in rows)
    by_id = {entry["id"]: entry for entry in doc["annotations"]}
    for row in rows:
        assert row["image"] == (valid_root / SPLIT / row["file_name"]).read_bytes()
        assert row["annotation_id"] == sorted(row["annotation_id"])
        for number, annotation_id in enumerate(row["annotation_id"]):
            entry = by_id.pop(annotation_id)
            x, y, w, h = entry["bbox"]
            assert entry["image_id"] == row["image_id"]
            assert row["boxes_xyxy"][number] == [x, y, x + w, y + h]
            assert row["category_index"][number] == index[entry["category_id"]]
            assert row["is_crowd"][number] == bool(entry["iscrowd"])
            assert row["area_px"][number] == np.float32(entry["area"])
            packed = {"size": [row["height"], row["width"]], "counts": row["rle"][number]}
            assert coco_mask.area(packed) == entry["area"]
            assert len(row["squeeze_field"][number]) == 112 * 112
    assert not by_id


def test_what_the_training_decoder_refuses_is_found_and_the_rest_is_trained(coco, tmp_path):
    names = sorted(each["file_name"] for each in load(coco)["images"])
    pngs = [coco / SPLIT / name for name in names if name.endswith(".png")]
    broken = bytearray(pngs[0].read_bytes())
    # A byte of a checksum: Pillow passes over it.
    broken[-13] ^= 1
    pngs[0].write_bytes(broken)
    pngs[1].write_bytes(pngs[1].read_bytes()[:-12])
    first, *_ = (coco / SPLIT / name for name in names)
    photo = Image.open(first).convert("RGB")
    photo.save(first, format="MPO", save_all=True, append_images=[photo])
    with pytest.raises(DatasetError) as raised:
        ingest_dataset(_config(coco, tmp_path / "out"))
    text = str(raised.value)
    assert text.startswith("2 problems in ")
    assert "the checksum of chunk b'IDAT' is wrong" in text
    assert "it is cut off after" in text
    result = ingest_dataset(_config(coco, tmp_path / "out", on_bad="drop"))
    assert (result["images"], result["rejects"]) == (68, 2)
    manifest = read_manifest(str(tmp_path / "out"))
    assert (manifest.rejects, manifest.notices) == ({"image_unreadable": 2}, {"image_pictures": 1})
    for shard in manifest.shards:
        rows = pq.read_table(tmp_path / "out" / shard.file)
        for row in range(len(rows)):
            assert decode_row(rows, row).dtype == np.uint8


def test_equal_data_gives_equal_bytes(valid_root, coco, tmp_path):
    ingest_dataset(_config(valid_root, tmp_path / "a"))
    ingest_dataset(_config(coco, tmp_path / "b"))
    assert _bytes(tmp_path / "a") == _bytes(tmp_path / "b")


def test_resumes_after_being_killed(valid_root, tmp_path, monkeypatch):
    config = _config(valid_root, tmp_path / "out", rows_per_shard=32)
    ingest_dataset(_config(valid_root, tmp_path / "whole", rows_per_shard=32))
    make_shard = ingest_module.make_shard

    def killed_at_the_third(file, packed, settings):
        if file == "part-00002.parquet":
            raise KeyboardInterrupt
        return make_shard(file, packed, settings)

    monkeypatch.setattr(ingest_module, "make_shard", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        ingest_dataset(config)
    assert sorted(_bytes(tmp_path / "out")) == ["part-00000.parquet", "part-00001.parquet"]
    written = (tmp_path / "out" / "part-00000.parquet").stat().st_mtime_ns
    with pytest.raises(DatasetError, match="ingest has not finished"):
        read_manifest(config.out)

    monkeypatch.undo()
    result = ingest_dataset(config)
    assert result["shards_kept"] == 2
    assert (tmp_path / "out" / "part-00000.parquet").stat().st_mtime_ns == written
    assert _bytes(tmp_path / "out") == _bytes(tmp_path / "whole")


def test_ray_makes_only_what_this_process_does_not_finish_while_it_would_start(
    valid_root, tmp_path, monkeypatch
):
    made: list[str] = []

    def make_shards(parts, settings, *, workers):
        assert workers == -1
        for file, packed in parts:
            made.append(file)
            yield ingest_module.make_shard(file, packed, settings)

    monkeypatch.setattr("pipeline.data.ingest_tasks.make_shards_on_ray", make_shards)
    default = {"rows_per_shard": 32, "workers": -1}
    ingest_dataset(replace(_config(valid_root, tmp_path / "here"), **default))
    assert made == []
    monkeypatch.setattr(ingest_module, "_ALONE_S", 0.05)
    ingest_dataset(replace(_config(valid_root, tmp_path / "both"), **default))
    assert made[-1] == "part-00002.parquet"
    assert len(made) < 3
    assert _bytes(tmp_path / "here") == _bytes(tmp_path / "both")


def test_a_truncated_shard_is_made_again(valid_root, tmp_path):
    config = _config(valid_root, tmp_path / "out", rows_per_shard=32)
    ingest_dataset(config)
    before = _bytes(tmp_path / "out")
    path = tmp_path / "out" / "part-00001.parquet"
    path.write_bytes(path.read_bytes()[:5000])
    assert ingest_dataset(config)["shards_kept"] == 2
    assert _bytes(tmp_path / "out") == before


@pytest.mark.parametrize("kind", DAMAGE)
def test_each_kind_of_damage_is_reported_and_dropped(coco, tmp_path, kind):
    breaker = Breaker(coco)
    breaker.apply(kind)
    breaker.save()
    out = tmp_path / "out"
    with pytest.raises(DatasetError, match=kind) as caught:
        ingest_dataset(_config(coco, out))
    assert "--on-bad drop" in str(caught.value)
    assert "--on-bad fix" in str(caught.value)
    assert not (out / "dataset.json").exists()
    found = pq.read_table(out / "rejects.parquet").to_pylist()
    assert kind in {row["kind"] for row in found}
    assert {row["action"] for row in found} == {"found"}

    result = ingest_dataset(_config(coco, out, on_bad="drop"))
    rejects = pq.read_table(out / "rejects.parquet").to_pylist()
    assert result["rejects"] == len(rejects) == len(found)
    assert {row["action"] for row in rejects} == {"dropped"}
    assert read_manifest(str(out)).rejects[kind] >= 1
    # Every dropped entry is in the rejects, complete.
    doc = json.loads((coco / "annotations" / f"instances_{SPLIT}.json").read_text())
    kept = {number for row in _rows(out) for number in row["annotation_id"]}
    lost = [json.loads(row["raw"]) for row in rejects]
    lost_ids = {entry["id"] for entry in lost if "bbox" in entry}
    lost_ids |= {entry["id"] for image in lost for entry in image.get("annotations", [])}
    assert kept | lost_ids == {entry["id"] for entry in doc["annotations"]}


def test_all_kinds_are_reported_in_one_table(coco, tmp_path):
    breaker = Breaker(coco)
    for kind in DAMAGE:
        breaker.apply(kind)
    breaker.save()
    with pytest.raises(DatasetError) as caught:
        ingest_dataset(_config(coco, tmp_path / "out"))
    assert all(f"\n{kind} " in str(caught.value) for kind in DAMAGE)


@pytest.mark.parametrize("on_bad", ["stop", "drop", "fix"])
@pytest.mark.parametrize("kind", ALWAYS_STOPS)
def test_stop_problems_end_ingest_before_a_file_is_opened(coco, tmp_path, kind, on_bad):
    breaker = Breaker(coco)
    ALWAYS_STOPS[kind](breaker)
    breaker.save()
    with pytest.raises(DatasetError, match=kind):
        ingest_dataset(_config(coco, tmp_path / "out", on_bad=on_bad))
    assert not (tmp_path / "out").exists()


def test_fix_cuts_boxes_and_drops_the_rest(coco, tmp_path):
    breaker = Breaker(coco)
    for kind in ("box_outside", "box_empty"):
        breaker.apply(kind)
    breaker.save()
    result = ingest_dataset(_config(coco, tmp_path / "out", on_bad="fix"))
    assert (result["fixed"], result["rejects"]) == (1, 1)
    manifest = read_manifest(str(tmp_path / "out"))
    assert (manifest.fixed, manifest.rejects) == ({"box_outside": 1}, {"box_empty": 1})
    for row in _rows(tmp_path / "out"):
        for x0, y0, x1, y1 in row["boxes_xyxy"]:
            assert 0 <= x0 < x1 <= row["width"]
            assert 0 <= y0 < y1 <= row["height"]


def test_the_next_run_takes_a_repaired_image(coco, tmp_path):
    breaker = Breaker(coco)
    image = breaker.image()
    path = breaker.file(image)
    whole = path.read_bytes()
    path.unlink()
    config = _config(coco, tmp_path / "out", on_bad="drop", rows_per_shard=32)
    assert ingest_dataset(config)["images"] == 69
    path.write_bytes(whole)
    result = ingest_dataset(config)
    assert (result["images"], result["shards_kept"]) == (70, 2)


def test_boxes_slightly_off_the_mask_are_kept_with_a_notice(coco, tmp_path):
    doc = load(coco)
    entry = max(doc["annotations"], key=lambda each: each["bbox"][2])
    entry["bbox"][2] -= 5
    save(coco, doc)
    result = ingest_dataset(_config(coco, tmp_path / "out"))
    assert (result["rejects"], result["notices"]) == (0, 1)
    assert read_manifest(str(tmp_path / "out")).notices == {"box_off": 1}


def test_replaces_another_data_set_only_with_overwrite(coco, tmp_path):
    out = tmp_path / "out"
    ingest_dataset(_config(coco, out, rows_per_shard=32))
    before = _bytes(out)
    doc = load(coco)
    doc["images"] = doc["images"][40:]
    ids = {image["id"] for image in doc["images"]}
    doc["annotations"] = [each for each in doc["annotations"] if each["image_id"] in ids]
    save(coco, doc)
    with pytest.raises(DatasetError, match="--overwrite"):
        ingest_dataset(_config(coco, out, rows_per_shard=32))
    assert _bytes(out) == before
    assert ingest_dataset(_config(coco, out, rows_per_shard=32, overwrite=True))["images"] == 30
    assert sorted(_bytes(out)) == ["dataset.json", "part-00000.parquet", "rejects.parquet"]


def test_a_failing_disk_is_not_reported_as_missing_images(coco, tmp_path, monkeypatch):
    def fails(*_):
        raise OSError("connection reset")

    monkeypatch.setattr("pipeline.data.dataset_files._read_bytes", fails)
    with pytest.raises(StorageError, match=r"connection reset.*finished shards are kept"):
        ingest_dataset(_config(coco, tmp_path / "out", on_bad="drop"))


def test_a_missing_split_is_reported_with_the_existing_ones(valid_root, tmp_path):
    config = CocoIngest(root=str(valid_root), split="val", out=str(tmp_path / "out"), workers=0)
    with pytest.raises(DatasetError) as caught:
        ingest_dataset(config)
    assert "instances_tiny.json" in str(caught.value)
    assert "--images" in str(caught.value)


def test_a_data_set_without_a_valid_image_is_an_error(coco, tmp_path):
    shutil.rmtree(coco / SPLIT)
    (coco / SPLIT).mkdir()
    with pytest.raises(DatasetError, match="no valid image"):
        ingest_dataset(_config(coco, tmp_path / "out", on_bad="drop"))
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_wrong_settings_are_reported_together(tmp_path):
    with pytest.raises(DatasetError, match=r"multiple of 32, got 33; max_pixels: must be"):
        _config(tmp_path, tmp_path, rows_per_shard=33, max_pixels=0)


def test_the_suggested_command_repeats_the_users_flags(tmp_path):
    config = _config("my photos", "out", max_pixels=1000, overwrite=True)
    assert config.command("drop") == (
        "python jobs/ingest.py coco --root 'my photos' --split tiny --out out "
        "--max-pixels 1000 --workers 0 --overwrite --on-bad drop"
    )


@pytest.mark.parametrize(
    ("images", "rows"), [(1, 32), (2048, 32), (2049, 64), (5000, 96), (118_287, 512)]
)
def test_shards_grow_with_the_data_set(images, rows):
    assert choose_rows_per_shard(images) == rows


def test_refuses_a_decompression_bomb_by_its_header():
    bomb = bomb_png(9000, 10_000)
    assert len(bomb) < 500
    for side, limit in ((9000, 10**7), (9000, 89_478_485), (60_000, 89_478_485)):
        (found,) = check_image(bomb_png(side, 10_000), (10_000, side), max_pixels=limit)
        assert found[0] == "image_too_large"
    # Within the limit it is decoded, and has too little data.
    (found,) = check_image(bomb_png(500, 400), (400, 500), max_pixels=10**6)
    assert found[0] == "image_unreadable"


def _validate(**changes):
    image = {"id": 1, "file_name": "x.png", "height": 400, "width": 500}
    entry = {
        "id": 2,
        "category_id": 3,
        "image_id": 1,
        "bbox": [10, 10, 20, 20],
        "segmentation": [[10, 10, 30, 10, 30, 30, 10, 30]],
        "area": 400,
        "iscrowd": 0,
    }
    out = io.BytesIO()
    Image.new("L", (500, 400)).save(out, format="PNG")
    image |= {key: value for key, value in changes.items() if key in image}
    entry |= {key: value for key, value in changes.items() if key in entry}
    found = validate_image({**image, "annotations": [entry]}, FileContent(out.getvalue()), {3: 0})
    return found, [problem.kind for problem in found.problems]


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({}, []),
        # Empty only as float32, the type of a row.
        ({"bbox": [300, 10, 1e-6, 20]}, ["box_empty"]),
        ({"area": 1e300}, ["not_finite"]),
        ({"bbox": [10, 10, 1e308, 1e308]}, ["not_finite"]),
        ({"bbox": [-5, 10, 20, 20]}, ["box_outside"]),
        ({"bbox": [10, 10, 20, -5]}, ["box_empty"]),
        # Hand-drawn boxes are slightly off, and reach slightly over the border by rounding.
        ({"bbox": [12.9, 10, 17.1, 20]}, []),
        ({"bbox": [14, 10, 16, 20]}, ["box_off"]),
        ({"bbox": [25, 10, 20, 20]}, ["box_disagrees"]),
        ({"bbox": [-0.5, 0, 30, 30], "segmentation": [[0, 0, 30, 0, 30, 30]]}, ["box_rounding"]),
        ({"segmentation": [[-8, 10, 30, 10, 30, 30, -8, 30]]}, ["polygon_outside", "box_off"]),
        # Decoding such masks would exhaust the memory.
        ({"height": 2**31 - 1, "width": 2**31 - 1}, ["image_too_large"]),
    ],
)
def test_validates_the_border_cases(changes, kinds):
    found, seen = _validate(**changes)
    assert seen == kinds
    kept = found.row is not None and found.row["annotation_id"] == [2]
    assert kept == all(problem.severity == "notice" for problem in found.problems)


def test_exif_orientation_is_a_notice():
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (50, 40)).save(out, format="JPEG", exif=exif)
    assert check_image(out.getvalue(), (40, 50), max_pixels=10**6) == [
        ("image_turned", "EXIF orientation 6")
    ]
