"""Masks of files are refined: everything else in the file stays, and problems come first."""

import json
import logging

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_api
from torch import nn

from pipeline.errors import DatasetError, RecipeError, StorageError
from pipeline.evaluation import mask_refinement
from pipeline.evaluation.coco_files import read_json
from pipeline.refine.refine_files import RefineOptions, check_options, refine_files
from tests.pipeline.refine.drawn_photos import (
    SIZE_HW,
    draw_disk,
    make_coarse_rows,
    make_tiny_refiner,
    refine_to_bright_pixels,
    to_rle,
    to_square,
    write_photos,
)


@pytest.fixture
def truth(tmp_path):
    return write_photos(tmp_path)


@pytest.fixture
def finds_disks(monkeypatch):
    monkeypatch.setattr(mask_refinement, "refine_masks", refine_to_bright_pixels)
    return nn.Linear(1, 1)


def run(model, folder, **options):
    options = {"images": str(folder / "photos"), "out": str(folder / "out.json"), **options}
    return refine_files(model, "models:/r/7", RefineOptions(**options))


def write_json(path, content):
    path.write_text(json.dumps(content))
    return str(path)


def test_detections_keep_their_order_and_all_keys_but_their_masks(
    truth, finds_disks, tmp_path, caplog
):
    rows = make_coarse_rows(truth)[::-1]
    file = write_json(tmp_path / "results.json", rows)
    with caplog.at_level(logging.INFO, logger="pipeline"):
        result = run(finds_disks, tmp_path, detections=file, truth=str(tmp_path / "truth.json"))
    refined = json.loads((tmp_path / "out.json").read_text())
    for row, before, true in zip(refined, rows, truth["annotations"][::-1], strict=True):
        assert {k: v for k, v in row.items() if k != "segmentation"} == {
            k: v for k, v in before.items() if k != "segmentation"
        }
        assert row["segmentation"] == true["segmentation"]
    assert (result["photos"], result["masks"], result["refined"], result["kept"]) == (3, 6, 6, 0)
    assert 0.1 < result["mean_change"] < 0.4
    assert result["matched"] == 6
    assert result["given_mask_iou"] == pytest.approx(1 - result["mean_change"], abs=1e-3)
    for name in ("mask_iou", "boundary_iou", "boundary_iou_narrow", "mask_ap", "boundary_ap"):
        assert result[name] == pytest.approx(1)
        assert result[f"given_{name}"] < 0.9
    assert "boundary IoU, band 0.5%" in caplog.text
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    with Image.open(result["sheet"]) as sheet:
        assert sheet.format == "PNG"


def test_masks_of_few_of_the_photos_of_a_truth_are_told(truth, finds_disks, tmp_path, caplog):
    first = truth["images"][0]["id"]
    rows = [row for row in make_coarse_rows(truth) if row["image_id"] == first]
    file = write_json(tmp_path / "results.json", rows)
    with caplog.at_level(logging.INFO, logger="pipeline"):
        run(finds_disks, tmp_path, detections=file, truth=str(tmp_path / "truth.json"))
    assert "note: 2 of the truth's 3 images have no detection" in caplog.text


def test_a_refined_file_that_was_changed_is_refused(truth, finds_disks, tmp_path):
    file = write_json(tmp_path / "results.json", make_coarse_rows(truth))
    run(finds_disks, tmp_path, detections=file)
    out = tmp_path / "out.json"
    assert len(read_json(str(out))) == 6
    out.write_bytes(out.read_bytes().replace(b"0.", b"1.", 1))
    with pytest.raises(StorageError, match=r"out\.json was changed after it was written"):
        read_json(str(out))


def test_a_file_without_masks_is_not_passed_over_in_silence(truth, finds_disks, tmp_path, caplog):
    file = write_json(tmp_path / "results.json", [])
    assert run(finds_disks, tmp_path, detections=file)["masks"] == 0
    assert "results.json holds no masks to refine" in caplog.text
    assert json.loads((tmp_path / "out.json").read_text()) == []


def test_a_large_change_is_kept_and_counted(truth, finds_disks, tmp_path):
    rows = make_coarse_rows(truth)
    rows[0]["segmentation"] = to_rle(draw_disk((32, 40), 4))
    file = write_json(tmp_path / "results.json", rows)
    result = run(finds_disks, tmp_path, detections=file)
    refined = json.loads((tmp_path / "out.json").read_text())
    assert (result["kept"], result["refined"]) == (1, 5)
    assert refined[0] == rows[0]
    assert refined[1] != rows[1]
    everything = run(finds_disks, tmp_path, detections=file, max_change=1.0)
    assert (everything["kept"], everything["refined"]) == (0, 6)


def test_annotations_are_cleaned_with_box_and_area_and_crowds_stay(truth, finds_disks, tmp_path):
    coarse = json.loads(json.dumps(truth)) | {"info": {"year": 2026}}
    for each in coarse["annotations"]:
        mask = np.asarray(mask_api.decode(each["segmentation"]))
        each |= {"segmentation": [to_square(mask)], "area": 1}
    crowd = {**coarse["annotations"][1], "id": 999, "iscrowd": 1}
    coarse["annotations"].insert(1, crowd)
    file = write_json(tmp_path / "coarse.json", coarse)
    result = run(finds_disks, tmp_path, annotations=file)
    cleaned = json.loads((tmp_path / "out.json").read_text())
    assert result["crowds"] == 1
    assert cleaned["annotations"].pop(1) == crowd
    assert cleaned["annotations"] == [
        each | {"bbox": [float(side) for side in each["bbox"]]} for each in truth["annotations"]
    ]
    assert cleaned["refined_by"] == "models:/r/7"
    assert cleaned["info"] == {"year": 2026}
    assert cleaned["images"] == truth["images"]


def test_label_pngs_keep_void_and_palette_and_no_pixel_has_two_owners(finds_disks, tmp_path):
    (tmp_path / "photos" / "a").mkdir(parents=True)
    (tmp_path / "masks" / "a").mkdir(parents=True)
    photo = np.full((*SIZE_HW, 3), 40, np.uint8)
    photo[20:60, 20:100] = 220
    Image.fromarray(photo).save(tmp_path / "photos" / "a" / "1.png")
    labels = np.zeros(SIZE_HW, np.uint8)
    labels[24:56, 24:60] = 3
    labels[24:56, 60:96] = 7
    labels[20:24, 20:40] = 255
    labels[70:80, 70:80] = 9
    picture = Image.fromarray(labels)
    picture.putpalette([value % 256 for value in range(768)])
    picture.save(tmp_path / "masks" / "a" / "1.png")
    result = run(
        finds_disks, tmp_path, labels=str(tmp_path / "masks"), out=str(tmp_path / "refined")
    )
    with Image.open(tmp_path / "refined" / "a" / "1.png") as refined:
        assert refined.mode == "P"
        assert refined.getpalette() == [value % 256 for value in range(768)]
        found = np.array(refined)
    assert (found == 255).sum() == (labels == 255).sum()
    bright = (photo[:, :, 0] > 127) & (labels != 255)
    assert ((found == 3) | (found == 7)).sum() == bright.sum()
    # Each keeps its own pixels, although both grew into each other.
    assert (found[labels == 3] == 3).all()
    assert (found[labels == 7] == 7).all()
    # An object that the refiner would lose stays.
    assert (found == 9).sum() == 100
    assert (result["masks"], result["kept"]) == (3, 1)


def test_photos_are_found_by_the_id_in_their_name(truth, finds_disks, tmp_path):
    rows = make_coarse_rows(truth)
    photos = tmp_path / "photos"
    (photos / "sub").mkdir()
    (photos / f"{10:012d}.png").rename(photos / "sub" / "COCO_val2014_000000000010.png")
    file = write_json(tmp_path / "results.json", rows)
    assert run(finds_disks, tmp_path, detections=file)["refined"] == 6
    # Rows that name their photos need no id in the name.
    (photos / f"{11:012d}.png").rename(photos / "eleven.png")
    named = [row | ({"file_name": "eleven.png"} if row["image_id"] == 11 else {}) for row in rows]
    file = write_json(tmp_path / "named.json", {"model": "m", "detections": named})
    assert run(finds_disks, tmp_path, detections=file)["refined"] == 6
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["refined_by"] == "models:/r/7"
    assert [row["track"] for row in written["detections"]] == [row["track"] for row in rows]


def test_all_problems_are_reported_before_anything_is_refined(truth, tmp_path):
    rows = make_coarse_rows(truth)
    rows[0]["image_id"] = 77
    rows[1]["segmentation"] = {"size": [5, 5], "counts": [25]}
    del rows[2]["segmentation"]
    rows[3]["image_id"] = "eleven"
    rows.append(7)
    (tmp_path / "photos" / f"{12:012d}.png").write_bytes(b"no photo")
    (tmp_path / "photos" / f"{12:012d}.jpg").write_bytes(b"no photo")
    file = write_json(tmp_path / "results.json", rows)
    with pytest.raises(DatasetError) as raised:
        run(make_tiny_refiner(), tmp_path, detections=file)
    text = str(raised.value)
    assert "nothing was refined" in text
    for part in (
        "missing photo (1)\n    image 77",
        "wrong segmentation size (1)",
        "entry 2: no segmentation",
        "entry 3: image_id 'eleven'",
        "not an object (1)\n    entry 6: 7",
        "several photos for one image (1)",
    ):
        assert part in text, part
    assert not (tmp_path / "out.json").exists()


def test_a_photo_of_another_size_than_the_annotations_say_is_a_problem(truth, tmp_path):
    truth["images"][0]["height"] = 97
    file = write_json(tmp_path / "coarse.json", truth)
    with pytest.raises(DatasetError, match=r"has \[96, 128\], the file \[97, 128\]"):
        run(make_tiny_refiner(), tmp_path, annotations=file)


def test_the_masks_of_a_photo_that_breaks_off_are_kept_and_counted(
    truth, finds_disks, tmp_path, caplog
):
    rows = make_coarse_rows(truth)
    photo = tmp_path / "photos" / f"{10:012d}.png"
    photo.write_bytes(photo.read_bytes()[:120])
    file = write_json(tmp_path / "results.json", rows)
    result = run(finds_disks, tmp_path, detections=file)
    refined = json.loads((tmp_path / "out.json").read_text())
    assert (result["photos_left_out"], result["refined"]) == (1, 4)
    assert refined[:2] == rows[:2]
    assert f"{10:012d}.png" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give one of --detections, --annotations and --labels, got none"),
        ({"detections": "a", "labels": "b"}, "got --detections and --labels"),
        ({"labels": "b", "truth": "t"}, "--truth is compared with --detections only"),
        ({"labels": "b", "max_change": 2.0}, r"--max-change must be in \[0, 1\], got 2"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        check_options(RefineOptions(images="p", out="o", **options))


def test_inputs_are_not_overwritten(truth, tmp_path):
    file = str(tmp_path / "truth.json")
    with pytest.raises(DatasetError, match="would overwrite an input"):
        run(make_tiny_refiner(), tmp_path, annotations=file, out=file)


def test_masks_do_not_depend_on_how_many_fit_into_memory(truth):
    model = make_tiny_refiner()
    pixels = np.random.default_rng(0).integers(0, 255, (*SIZE_HW, 3), dtype=np.uint8)
    rles = [
        {"size": list(SIZE_HW), "counts": each["segmentation"]["counts"].encode()}
        for each in truth["annotations"]
    ]
    one, many = (
        mask_refinement.refine_rles(model, pixels, rles, max_change=1.0, mask_bytes=size)
        for size in (1, 2**30)
    )
    assert any(mask.change > 0 for mask in many)
    for a, b in zip(one, many, strict=True):
        # Convolutions of a batch round differently than of one.
        assert mask_api.iou([a.rle], [b.rle], [0])[0, 0] > 0.97
        assert a.confidence == pytest.approx(b.confidence, abs=1e-3)
