"""The embedded data set is valid COCO, reproducible and not trivial."""

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from pipeline.data.sources.shape_drawing import SHAPES
from pipeline.data.sources.shapes import draw_image, write_shapes


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, train_images=120, val_images=20, seed=3)
    return root


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(root, tmp_path):
    write_shapes(tmp_path / "again", train_images=120, val_images=20, seed=3)
    write_shapes(tmp_path / "other", train_images=120, val_images=20, seed=4)
    assert digests(tmp_path / "again") == digests(root)
    other = digests(tmp_path / "other")
    assert all(other[name] != digest for name, digest in digests(root).items())


def test_more_images_do_not_change_the_first_ones(root, tmp_path):
    write_shapes(tmp_path, train_images=150, val_images=20, seed=3)
    before, after = digests(root / "train"), digests(tmp_path / "train")
    assert len(after) == 150
    assert {name: after[name] for name in before} == before


def test_a_complete_folder_is_kept_and_an_interrupted_one_is_made_again(root, tmp_path):
    write_shapes(tmp_path, train_images=5, val_images=2)
    complete = digests(tmp_path)
    (tmp_path / "train" / "000000000003.jpg").unlink()
    (tmp_path / "annotations" / "instances_train.json").unlink()
    write_shapes(tmp_path, train_images=5, val_images=2)
    assert digests(tmp_path) == complete
    stamp = (tmp_path / "train" / "000000000003.jpg").stat().st_mtime_ns
    write_shapes(tmp_path, train_images=5, val_images=2)
    assert (tmp_path / "train" / "000000000003.jpg").stat().st_mtime_ns == stamp


def test_pycocotools_reads_it_and_areas_and_boxes_match_the_masks(root, capsys):
    for split, count in (("train", 120), ("val", 20)):
        coco = COCO(str(root / "annotations" / f"instances_{split}.json"))
        assert len(coco.imgs) == count
        assert {c["name"] for c in coco.cats.values()} == set(SHAPES)
        for image in coco.imgs.values():
            picture = cv2.imread(str(root / split / image["file_name"]))
            assert picture.shape == (image["height"], image["width"], 3)
        for annotation in coco.anns.values():
            mask = coco.annToMask(annotation)
            assert mask.sum() == annotation["area"]
            assert coco_mask.toBbox(coco.annToRLE(annotation)).tolist() == annotation["bbox"]


def test_has_hard_boundaries(root):
    coco = COCO(str(root / "annotations" / "instances_train.json"))
    kinds = {type(a["segmentation"]) for a in coco.anns.values()}
    assert kinds == {list, dict}, "both polygons and run lengths"
    assert any(not coco.getAnnIds(image_id) for image_id in coco.imgs), "images without objects"
    assert {a["category_id"] for a in coco.anns.values()} == {1, 2, 3, 4, 5}
    touching = 0
    for image_id in coco.imgs:
        masks = [coco.annToMask(a) for a in coco.loadAnns(coco.getAnnIds(image_id))]
        if masks:
            assert np.sum(masks, axis=0).max() <= 1, "masks are the visible parts"
            grown = [cv2.dilate(m, np.ones((3, 3), np.uint8)) for m in masks]
            touching += int(np.sum(grown, axis=0).max() > 1)
    assert touching > 20, "shapes overlap"


def test_a_shape_contrasts_with_its_background():
    differences = []
    for image_id in range(1, 60):
        image = draw_image(seed=0, split="train", image_id=image_id)
        for annotation in image.annotations:
            if isinstance(annotation["segmentation"], list):
                height, width, _ = image.picture.shape
                rle = coco_mask.merge(
                    coco_mask.frPyObjects(annotation["segmentation"], height, width)
                )
                mask = coco_mask.decode(rle)
                ring = cv2.dilate(mask, np.ones((7, 7), np.uint8)) - mask
                inside = image.picture[mask > 0].mean(0)
                differences.append(np.linalg.norm(inside - image.picture[ring > 0].mean(0)))
    assert np.median(differences) > 50


def test_info_records_the_arguments(root):
    info = json.loads((root / "annotations" / "instances_val.json").read_text())["info"]
    assert info == {"description": "shapes", "version": "1", "seed": 3, "images": 20}
