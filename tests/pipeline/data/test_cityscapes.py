"""Ingest of Cityscapes' instances and label maps from folders and zips, valid and broken."""

import io
import json
import shutil

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from pipeline.data.audit import audit
from pipeline.data.ingest import ingest_dataset
from pipeline.data.ingest_config import CityscapesIngest, CityscapesSemanticIngest
from pipeline.data.label_png import LabelError
from pipeline.data.manifest import read_manifest
from pipeline.data.run_lengths import encode_instance_masks
from pipeline.data.semantic_fields import VOID, decode_plane
from pipeline.data.validate_cityscapes import draw_ids
from pipeline.errors import DatasetError
from tests.pipeline.data.street_samples import (
    SIZE_HW,
    TRAIN_IDS,
    cityscapes,
    draw_frame,
    frame_objects,
    label_ids,
    photo,
    png,
    zip_folders,
)

CLASSES = {24: 0, 25: 1, 26: 2, 27: 3, 28: 4, 31: 5, 32: 6, 33: 7}
FIRST = "aachen/aachen_000000_000019"


def config(root, **changes) -> CityscapesIngest:
    given = {"root": str(root), "split": "train", "out": f"{root}/out", "workers": 0, **changes}
    return CityscapesIngest(**given)


def semantic(root, **changes) -> CityscapesSemanticIngest:
    given = {"root": str(root), "split": "train", "out": f"{root}/out", "workers": 0, **changes}
    return CityscapesSemanticIngest(**given)


def rows(out) -> list[dict]:
    files = [shard.file for shard in read_manifest(str(out)).shards]
    return [row for file in files for row in pq.read_table(f"{out}/{file}").to_pylist()]


@pytest.fixture(scope="module")
def valid_root(tmp_path_factory):
    return cityscapes(tmp_path_factory.mktemp("cityscapes"))


@pytest.fixture
def root(valid_root, tmp_path):
    """A copy to break."""
    return shutil.copytree(valid_root, tmp_path / "cityscapes")


def check_row(row: dict, ids: np.ndarray) -> None:
    """Compare a row with the ids of its frame."""
    wanted = [
        int(each) for each in np.unique(ids) if (each if each < 1000 else each // 1000) in CLASSES
    ]
    assert row["annotation_id"] == wanted
    for number, each in enumerate(wanted):
        mask = ids == each
        packed = {"size": list(ids.shape), "counts": row["rle"][number]}
        np.testing.assert_array_equal(coco_mask.decode(packed), mask)
        x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
        assert row["boxes_xyxy"][number] == [x, y, x + width, y + height]
        assert row["category_index"][number] == CLASSES[each if each < 1000 else each // 1000]
        assert row["is_crowd"][number] == (each < 1000)
        assert row["area_px"][number] == mask.sum()


def test_instances_come_from_ids_and_groups_become_crowds(valid_root, tmp_path):
    result = ingest_dataset(config(valid_root, out=f"{tmp_path}/out"))
    assert (result["images"], result["rejects"], result["notices"]) == (6, 0, 0)
    found = rows(tmp_path / "out")
    by_city = sorted(range(6), key=lambda number: (number % 2, number))
    for row, number in zip(found, by_city, strict=True):
        check_row(row, draw_frame(frame_objects(number)))
        assert row["file_name"].endswith(f"_{number:06d}_000019_leftImg8bit.png")
        assert row["image"] == (valid_root / "leftImg8bit/train" / row["file_name"]).read_bytes()
    # Two cars and a group of persons in each frame.
    assert found[0]["annotation_id"] == [24, 26000, 26001]
    manifest = read_manifest(f"{tmp_path}/out")
    assert [(e.category_id, e.category_index) for e in manifest.categories] == [*CLASSES.items()]
    assert manifest.category_images == (0, 0, 6, 0, 0, 0, 0, 0)
    assert audit(f"{tmp_path}/out", deep=True)["problems"] == 0


def test_missing_ids_are_drawn_from_polygons_with_a_notice(root, caplog):
    ingest_dataset(config(root, out=f"{root}/before"))
    missing = sorted((root / "gtFine").rglob("*instanceIds.png"))[:4]
    for path in missing:
        path.unlink()
    with caplog.at_level("INFO"):
        result = ingest_dataset(config(root))
    assert "polygons.json (4 frames), instanceIds.png (2 frames)" in caplog.text
    assert (result["images"], result["notices"]) == (6, 4)
    assert read_manifest(f"{root}/out").notices == {"label_drawn": 4}
    assert rows(root / "out") == rows(root / "before")


def test_label_maps_come_from_label_ids_or_train_ids(root, tmp_path):
    result = ingest_dataset(semantic(root))
    assert (result["images"], result["rejects"]) == (6, 0)
    found = rows(root / "out")
    label = TRAIN_IDS[label_ids(draw_frame(frame_objects(0)))]
    np.testing.assert_array_equal(decode_plane(found[0]["label"]), label)
    assert set(np.unique(label)) >= {0, 5, 10, 11, 13, VOID}
    manifest = read_manifest(f"{root}/out")
    assert [e.category_id for e in manifest.categories][:3] == [7, 8, 11]
    assert manifest.category_px[13] == sum(
        int((TRAIN_IDS[label_ids(draw_frame(frame_objects(number)))] == 13).sum())
        for number in range(6)
    )
    for path in sorted((root / "gtFine").rglob("*_labelIds.png")):
        values = TRAIN_IDS[np.asarray(Image.open(path))]
        Image.fromarray(values).save(str(path).replace("labelIds", "labelTrainIds"))
        path.unlink()
    ingest_dataset(semantic(root, out=f"{root}/again"))
    assert [row["label"] for row in rows(root / "again")] == [row["label"] for row in found]


def test_official_zips_need_not_be_unpacked(root):
    before = ingest_dataset(config(root, out=f"{root}/before"))
    zip_folders(root, "leftImg8bit_trainvaltest.zip", "leftImg8bit")
    zip_folders(root, "gtFine_trainvaltest.zip", "gtFine")
    assert ingest_dataset(config(root))["fingerprint"] == before["fingerprint"]
    assert ingest_dataset(semantic(root, out=f"{root}/maps"))["images"] == 6


def _jpeg() -> bytes:
    out = io.BytesIO()
    photo(0).save(out, format="JPEG")
    return out.getvalue()


_IDS = draw_frame(frame_objects(0))
_STRANGE = np.where(_IDS == 26000, 40000, np.where(_IDS == 26001, 7000, _IDS)).astype(np.uint16)
_BROKEN = {
    "image_missing": ("leftImg8bit", "_leftImg8bit.png", None),
    "image_unreadable": ("leftImg8bit", "_leftImg8bit.png", png(photo(0))[:-500]),
    "label_unreadable": ("gtFine", "_gtFine_instanceIds.png", png(_IDS)[:-50]),
    "label_depth": ("gtFine", "_gtFine_instanceIds.png", png(label_ids(_IDS))),
    "label_format": ("gtFine", "_gtFine_instanceIds.png", _jpeg()),
    "label_size": ("gtFine", "_gtFine_instanceIds.png", png(_IDS[:40])),
    "label_value": ("gtFine", "_gtFine_instanceIds.png", png(_STRANGE)),
}


@pytest.mark.parametrize("kind", _BROKEN)
def test_each_kind_of_damage_is_reported_and_drops_the_frame(root, kind):
    side, ending, data = _BROKEN[kind]
    path = root / side / "train" / (FIRST + ending)
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DatasetError, match=kind) as caught:
        ingest_dataset(config(root))
    assert ("www.cityscapes-dataset.com" in str(caught.value)) == (kind == "image_missing")
    result = ingest_dataset(config(root, on_bad="drop"))
    (reject,) = pq.read_table(root / "out" / "rejects.parquet").to_pylist()
    assert (reject["kind"], reject["file_name"]) == (kind, f"{FIRST}_leftImg8bit.png")
    assert (result["images"], result["rejects"]) == (5, 1)


def test_reports_a_frame_without_a_label(root):
    for ending in ("instanceIds.png", "polygons.json"):
        (root / "gtFine" / "train" / f"{FIRST}_gtFine_{ending}").unlink()
    with pytest.raises(DatasetError, match=r"label_missing +1 .*\n.*gtFine_instanceIds\.png: no"):
        ingest_dataset(config(root))


def test_reports_unknown_ids_with_their_pixels(root):
    (root / "gtFine/train" / f"{FIRST}_gtFine_instanceIds.png").write_bytes(png(_STRANGE))
    counts = [int((each == _STRANGE).sum()) for each in (7000, 40000)]
    message = (
        rf"ids 7000 \({counts[0]} pixels\), 40000 \({counts[1]} pixels\); no class has these ids"
    )
    with pytest.raises(DatasetError, match=message):
        ingest_dataset(config(root))
    (root / "gtFine/train" / f"{FIRST}_gtFine_labelIds.png").write_bytes(
        png(np.full(SIZE_HW, 77, np.uint8))
    )
    with pytest.raises(DatasetError, match=r"values 77 \(4608 pixels\); classes have 7 to 33"):
        ingest_dataset(semantic(root))


def _polygons(**changes) -> bytes:
    found = {"imgHeight": 48, "imgWidth": 96, "objects": frame_objects(0), **changes}
    return json.dumps(found).encode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_polygons()[:300], "not readable as JSON"),
        (b'{"images": [], "annotations": []}', "no list of objects"),
        (_polygons(imgHeight=0), "imgHeight is 0"),
        (
            _polygons(objects=[{"label": "tram", "polygon": [[1, 1], [2, 2]]}]),
            "'tram' is not a class",
        ),
        (_polygons(objects=[{"polygon": [[1, 1], [2, 2]]}]), "object 0 has no label"),
        (
            _polygons(objects=[{"label": "car", "polygon": [[1, 1], [2, "x"]]}]),
            "not a list of points",
        ),
        (_polygons(objects=[{"label": "car", "polygon": [[1, 1]]}]), "not a list of points"),
        (
            _polygons(objects=[{"label": "car", "polygon": [[0, 0], [1e9, 0]]}]),
            "not a list of points",
        ),
        (b"[" * 100_000, "not readable as JSON"),
    ],
)
def test_refuses_files_that_are_not_polygon_files(data, message):
    with pytest.raises(LabelError, match=message) as caught:
        draw_ids(data, max_pixels=10**6)
    assert caught.value.kind == "polygon_file"


def test_reports_polygons_of_another_size(root):
    path = root / "gtFine" / "train" / f"{FIRST}_gtFine_instanceIds.png"
    path.unlink()
    path.with_name(path.name.replace("instanceIds.png", "polygons.json")).write_bytes(
        _polygons(imgHeight=50)
    )
    with pytest.raises(DatasetError, match=r"label_size.*\n.*polygons\.json: 96 x 50, the"):
        ingest_dataset(config(root))
    with pytest.raises(LabelError, match="the limit is 100"):
        draw_ids(_polygons(), max_pixels=100)


def test_swapped_folders_are_recognized(root):
    (root / "gtFine").rename(root / "x")
    (root / "leftImg8bit").rename(root / "gtFine")
    (root / "x").rename(root / "leftImg8bit")
    with pytest.raises(DatasetError, match=r"no image has a label.*color\.png.*folders swapped"):
        ingest_dataset(config(root))


def test_missing_folders_are_reported_with_the_existing_ones(root):
    with pytest.raises(DatasetError, match=r"leftImg8bit/val and gtFine/val: not in .*has gtFine/"):
        ingest_dataset(config(root, split="val"))
    shutil.rmtree(root / "gtFine")
    with pytest.raises(DatasetError, match=r"^gtFine/train: not in .*gtFine_trainvaltest\.zip"):
        ingest_dataset(semantic(root))


@pytest.mark.parametrize("number", range(3))
def test_polygons_are_drawn_as_cityscapesscripts_draws_them(number):
    annotation = pytest.importorskip("cityscapesscripts.helpers.annotation").Annotation()
    script = pytest.importorskip("cityscapesscripts.preparation.json2instanceImg")
    objects = frame_objects(number)
    # A line of two points, a self-intersecting polygon, and one that leaves the frame.
    objects += [
        {"label": "pole", "polygon": [[3, 3], [40, 17]]},
        {"label": "person", "polygon": [[10, 10], [30, 30], [30, 10], [10, 30]]},
        {"label": "bicycle", "polygon": [[80, 30], [120, 20], [96, 60]]},
    ]
    text = _polygons(objects=objects).decode()
    annotation.fromJsonText(text)
    expected = np.asarray(script.createInstanceImage(annotation, "ids"))
    np.testing.assert_array_equal(draw_ids(text.encode(), max_pixels=10**6), expected)


def test_encoded_instance_masks_equal_pycocotools():
    rng = np.random.default_rng(0)
    numbers = np.kron(rng.integers(0, 5, (6, 7)), np.ones((5, 6), int)) * 300
    for found in (numbers.astype(np.uint16), np.zeros((3, 4), np.uint16)):
        masks = encode_instance_masks(found)
        assert list(masks) == np.unique(found).tolist()
        for number, mask in masks.items():
            whole = np.asfortranarray(found == number, dtype=np.uint8)
            assert mask.encoded == coco_mask.encode(whole)["counts"]
            assert mask.area_px == whole.sum()
            assert mask.runs.sum() == found.size


def test_real_frames_are_nearly_equal_from_ids_and_from_polygons(real_data, tmp_path):
    path = real_data / "cityscapes_mini"
    result = ingest_dataset(config(path, out=f"{tmp_path}/out"))
    assert (result["images"], result["annotations"], result["rejects"]) == (8, 128, 0)
    folder = path / "gtFine" / "train"
    for row in rows(tmp_path / "out")[:3]:
        stem = row["file_name"].removesuffix("_leftImg8bit.png")
        ids = cv2.imread(str(folder / f"{stem}_gtFine_instanceIds.png"), cv2.IMREAD_UNCHANGED)
        check_row(row, ids)
        # These polygons were traced from the PNGs; an object in two parts became two objects.
        drawn = draw_ids((folder / f"{stem}_gtFine_polygons.json").read_bytes(), max_pixels=10**8)
        classes = [np.where(each >= 1000, each // 1000, each) for each in (ids, drawn)]
        assert (classes[0] != classes[1]).mean() < 0.001


def test_real_label_maps(real_data, tmp_path):
    path = real_data / "cityscapes_mini"
    result = ingest_dataset(semantic(path, out=f"{tmp_path}/out"))
    assert (result["images"], result["rejects"]) == (8, 0)
    assert audit(f"{tmp_path}/out", deep=True)["problems"] == 0
