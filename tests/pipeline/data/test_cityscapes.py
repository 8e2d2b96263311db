"""Cityscapes' frames, from folders and zips to instances and label maps, sound and broken."""

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
from pipeline.data.ingest import ingest_cityscapes, ingest_cityscapes_semantic
from pipeline.data.ingest_config import CityscapesIngest, CityscapesSemanticIngest
from pipeline.data.label_png import LabelError
from pipeline.data.manifest import read_manifest
from pipeline.data.run_lengths import read_numbers
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
    zipped,
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
def sound(tmp_path_factory):
    return cityscapes(tmp_path_factory.mktemp("cityscapes"))


@pytest.fixture
def root(sound, tmp_path):
    """A copy to break."""
    return shutil.copytree(sound, tmp_path / "cityscapes")


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


def test_instances_come_from_ids_and_groups_become_crowds(sound, tmp_path):
    result = ingest_cityscapes(config(sound, out=f"{tmp_path}/out"))
    assert (result["images"], result["rejects"], result["notices"]) == (6, 0, 0)
    found = rows(tmp_path / "out")
    by_city = sorted(range(6), key=lambda number: (number % 2, number))
    for row, number in zip(found, by_city, strict=True):
        check_row(row, draw_frame(frame_objects(number)))
        assert row["file_name"].endswith(f"_{number:06d}_000019_leftImg8bit.png")
        assert row["image"] == (sound / "leftImg8bit/train" / row["file_name"]).read_bytes()
    # Two cars and a group of persons in each.
    assert found[0]["annotation_id"] == [24, 26000, 26001]
    manifest = read_manifest(f"{tmp_path}/out")
    assert [(e.category_id, e.category_index) for e in manifest.categories] == [*CLASSES.items()]
    assert manifest.category_images == (0, 0, 6, 0, 0, 0, 0, 0)
    assert audit(f"{tmp_path}/out", deep=True)["problems"] == 0


def test_polygons_stand_in_where_ids_are_missing_and_say_so(root, caplog):
    ingest_cityscapes(config(root, out=f"{root}/before"))
    missing = sorted((root / "gtFine").rglob("*instanceIds.png"))[:4]
    for place in missing:
        place.unlink()
    with caplog.at_level("INFO"):
        result = ingest_cityscapes(config(root))
    assert "polygons.json (4 frames), instanceIds.png (2 frames)" in caplog.text
    assert (result["images"], result["notices"]) == (6, 4)
    assert read_manifest(f"{root}/out").notices == {"label_drawn": 4}
    assert rows(root / "out") == rows(root / "before")


def test_label_maps_come_from_label_ids_or_else_from_train_ids(root, tmp_path):
    result = ingest_cityscapes_semantic(semantic(root))
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
    for place in sorted((root / "gtFine").rglob("*_labelIds.png")):
        values = TRAIN_IDS[np.asarray(Image.open(place))]
        Image.fromarray(values).save(str(place).replace("labelIds", "labelTrainIds"))
        place.unlink()
    ingest_cityscapes_semantic(semantic(root, out=f"{root}/again"))
    assert [row["label"] for row in rows(root / "again")] == [row["label"] for row in found]


def test_official_zips_need_not_be_unpacked(root):
    before = ingest_cityscapes(config(root, out=f"{root}/before"))
    zipped(root, "leftImg8bit_trainvaltest.zip", "leftImg8bit")
    zipped(root, "gtFine_trainvaltest.zip", "gtFine")
    assert ingest_cityscapes(config(root))["fingerprint"] == before["fingerprint"]
    assert ingest_cityscapes_semantic(semantic(root, out=f"{root}/maps"))["images"] == 6


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
def test_each_kind_of_damage_is_named_and_leaves_out_the_frame(root, kind):
    side, ending, data = _BROKEN[kind]
    place = root / side / "train" / (FIRST + ending)
    place.unlink()
    if data is not None:
        place.write_bytes(data)
    with pytest.raises(DatasetError, match=kind) as caught:
        ingest_cityscapes(config(root))
    assert ("www.cityscapes-dataset.com" in str(caught.value)) == (kind == "image_missing")
    result = ingest_cityscapes(config(root, on_bad="drop"))
    (reject,) = pq.read_table(root / "out" / "rejects.parquet").to_pylist()
    assert (reject["kind"], reject["file_name"]) == (kind, f"{FIRST}_leftImg8bit.png")
    assert (result["images"], result["rejects"]) == (5, 1)


def test_a_frame_without_any_label_is_told(root):
    for ending in ("instanceIds.png", "polygons.json"):
        (root / "gtFine" / "train" / f"{FIRST}_gtFine_{ending}").unlink()
    with pytest.raises(DatasetError, match=r"label_missing +1 .*\n.*gtFine_instanceIds\.png: no"):
        ingest_cityscapes(config(root))


def test_ids_that_no_class_has_are_told_with_their_pixels(root):
    (root / "gtFine/train" / f"{FIRST}_gtFine_instanceIds.png").write_bytes(png(_STRANGE))
    counts = [int((each == _STRANGE).sum()) for each in (7000, 40000)]
    told = rf"ids 7000 \({counts[0]} pixels\), 40000 \({counts[1]} pixels\); no class has such"
    with pytest.raises(DatasetError, match=told):
        ingest_cityscapes(config(root))
    (root / "gtFine/train" / f"{FIRST}_gtFine_labelIds.png").write_bytes(
        png(np.full(SIZE_HW, 77, np.uint8))
    )
    with pytest.raises(DatasetError, match=r"values 77 \(4608 pixels\); classes have 7 to 33"):
        ingest_cityscapes_semantic(semantic(root))


def _polygons(**changes) -> bytes:
    found = {"imgHeight": 48, "imgWidth": 96, "objects": frame_objects(0), **changes}
    return json.dumps(found).encode()


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (_polygons()[:300], "not readable as JSON"),
        (b'{"images": [], "annotations": []}', "no list of objects"),
        (_polygons(imgHeight=0), "imgHeight is 0"),
        (_polygons(objects=[{"label": "tram", "polygon": [[1, 1], [2, 2]]}]), "'tram' is no class"),
        (_polygons(objects=[{"polygon": [[1, 1], [2, 2]]}]), "object 0 has no label"),
        (_polygons(objects=[{"label": "car", "polygon": [[1, 1], [2, "x"]]}]), "no list of points"),
        (_polygons(objects=[{"label": "car", "polygon": [[1, 1]]}]), "no list of points"),
        (_polygons(objects=[{"label": "car", "polygon": [[0, 0], [1e9, 0]]}]), "no list of points"),
        (b"[" * 100_000, "not readable as JSON"),
    ],
)
def test_polygon_files_that_are_none_are_refused(data, told):
    with pytest.raises(LabelError, match=told) as caught:
        draw_ids(data, most_pixels=10**6)
    assert caught.value.kind == "polygon_file"


def test_polygons_of_another_size_are_told(root):
    place = root / "gtFine" / "train" / f"{FIRST}_gtFine_instanceIds.png"
    place.unlink()
    place.with_name(place.name.replace("instanceIds.png", "polygons.json")).write_bytes(
        _polygons(imgHeight=50)
    )
    with pytest.raises(DatasetError, match=r"label_size.*\n.*polygons\.json: 96 x 50, the"):
        ingest_cityscapes(config(root))
    with pytest.raises(LabelError, match="the limit is 100"):
        draw_ids(_polygons(), most_pixels=100)


def test_swapped_folders_are_recognized(root):
    (root / "gtFine").rename(root / "x")
    (root / "leftImg8bit").rename(root / "gtFine")
    (root / "x").rename(root / "leftImg8bit")
    with pytest.raises(DatasetError, match=r"no image has a label.*color\.png.*folders swapped"):
        ingest_cityscapes(config(root))


def test_what_is_not_there_is_told_with_what_is(root):
    with pytest.raises(DatasetError, match=r"leftImg8bit/val and gtFine/val: not in .*has gtFine/"):
        ingest_cityscapes(config(root, split="val"))
    shutil.rmtree(root / "gtFine")
    with pytest.raises(DatasetError, match=r"^gtFine/train: not in .*gtFine_trainvaltest\.zip"):
        ingest_cityscapes_semantic(semantic(root))


@pytest.mark.parametrize("number", range(3))
def test_polygons_are_drawn_as_cityscapesscripts_draw_them(number):
    annotation = pytest.importorskip("cityscapesscripts.helpers.annotation").Annotation()
    script = pytest.importorskip("cityscapesscripts.preparation.json2instanceImg")
    objects = frame_objects(number)
    # A stroke of two points, a polygon that crosses itself, and one that leaves the frame.
    objects += [
        {"label": "pole", "polygon": [[3, 3], [40, 17]]},
        {"label": "person", "polygon": [[10, 10], [30, 30], [30, 10], [10, 30]]},
        {"label": "bicycle", "polygon": [[80, 30], [120, 20], [96, 60]]},
    ]
    text = _polygons(objects=objects).decode()
    annotation.fromJsonText(text)
    expected = np.asarray(script.createInstanceImage(annotation, "ids"))
    np.testing.assert_array_equal(draw_ids(text.encode(), most_pixels=10**6), expected)


def test_run_lengths_of_numbers_are_those_of_each_mask():
    rng = np.random.default_rng(0)
    numbers = np.kron(rng.integers(0, 5, (6, 7)), np.ones((5, 6), int)) * 300
    for found in (numbers.astype(np.uint16), np.zeros((3, 4), np.uint16)):
        masks = read_numbers(found)
        assert list(masks) == np.unique(found).tolist()
        for number, mask in masks.items():
            whole = np.asfortranarray(found == number, dtype=np.uint8)
            assert mask.encoded == coco_mask.encode(whole)["counts"]
            assert mask.area_px == whole.sum()
            assert mask.runs.sum() == found.size


def test_real_frames_are_nearly_the_same_from_ids_and_from_polygons(real_data, tmp_path):
    place = real_data / "cityscapes_mini"
    result = ingest_cityscapes(config(place, out=f"{tmp_path}/out"))
    assert (result["images"], result["annotations"], result["rejects"]) == (8, 128, 0)
    folder = place / "gtFine" / "train"
    for row in rows(tmp_path / "out")[:3]:
        stem = row["file_name"].removesuffix("_leftImg8bit.png")
        ids = cv2.imread(str(folder / f"{stem}_gtFine_instanceIds.png"), cv2.IMREAD_UNCHANGED)
        check_row(row, ids)
        # These polygons were traced from the images, and an object in two parts became two.
        drawn = draw_ids((folder / f"{stem}_gtFine_polygons.json").read_bytes(), most_pixels=10**8)
        classes = [np.where(each >= 1000, each // 1000, each) for each in (ids, drawn)]
        assert (classes[0] != classes[1]).mean() < 0.001


def test_real_label_maps(real_data, tmp_path):
    place = real_data / "cityscapes_mini"
    result = ingest_cityscapes_semantic(semantic(place, out=f"{tmp_path}/out"))
    assert (result["images"], result["rejects"]) == (8, 0)
    assert audit(f"{tmp_path}/out", deep=True)["problems"] == 0
