"""What data set a split is made from decides by which rules its instances are measured."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.ingest import ingest_cityscapes, ingest_lvis
from pipeline.data.ingest_config import CityscapesIngest, LvisIngest
from pipeline.errors import DatasetError
from pipeline.evaluation.cityscapes_files import evaluate_cityscapes
from pipeline.evaluation.cityscapes_submission import write_submission
from pipeline.evaluation.instances import Found, instance_work
from pipeline.evaluation.lvis import LvisMetrics, evaluate_lvis
from pipeline.evaluation.metrics import evaluate_detections
from pipeline.evaluation.result import Evaluation
from pipeline.evaluation.split_reader import truth_from_shards
from pipeline.recipe import DataConfig, EvaluationConfig
from tests.pipeline.data.lvis_samples import lvis
from tests.pipeline.data.street_samples import cityscapes

EVALUATION = EvaluationConfig()


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    root = cityscapes(tmp_path_factory.mktemp("streets"), frames=3)
    out = str(root / "shards")
    ingest_cityscapes(CityscapesIngest(root=str(root), split="train", out=out, workers=0))
    return root, out


def perfect(split: str, *, shift_px: int = 0) -> list[dict]:
    """The objects of the truth as detections, so many pixels to the right."""
    return [
        {
            "image_id": each["image_id"],
            "category_id": each["category_id"],
            "score": 0.9,
            "bbox": each["bbox"],
            "segmentation": moved(each["segmentation"], shift_px),
        }
        for each in truth_from_shards(split)["annotations"]
        if not each["iscrowd"]
    ]


def moved(rle: dict, shift_px: int) -> dict:
    from pycocotools import mask as mask_api

    mask = np.roll(mask_api.decode(rle), shift_px, axis=1)
    packed = mask_api.encode(np.asfortranarray(mask))
    return packed | {"counts": packed["counts"].decode()}


def measured(
    split: str, rows: list[dict], evaluation: EvaluationConfig = EVALUATION, out: str | None = None
) -> Evaluation:
    ids = tuple(image["id"] for image in truth_from_shards(split)["images"])
    work = instance_work(split, DataConfig(), evaluation, out_uri=out)
    return work.measure([Found(rows, ids, ())])


def test_a_submission_of_perfect_masks_has_the_official_ap_of_1(streets, tmp_path) -> None:
    root, split = streets
    rows = perfect(split)
    assert len(rows) == 6
    found = measured(split, rows, replace(EVALUATION, submission=True), out=str(tmp_path))
    folder = found.files["submission"]
    official = evaluate_cityscapes(str(root / "gtFine" / "train"), folder)
    assert official.mask == (1.0, 1.0)
    assert official.boundary == (1.0, 1.0)
    assert official.detections == 6
    names = sorted(path.name for path in Path(folder).glob("*.txt"))
    frames = ("aachen_000000", "aachen_000002", "bochum_000001")
    assert names == [f"{frame}_000019.txt" for frame in frames]
    line = (Path(folder) / names[0]).read_text().splitlines()[0].split()
    assert line == ["masks/aachen_000000_000019_000.png", "26", "0.9"]
    mask = np.asarray(Image.open(Path(folder) / line[0]))
    assert mask.shape == (48, 96)
    assert set(np.unique(mask)) == {0, 255}


def test_a_frame_without_detections_has_its_file_and_old_masks_go(streets, tmp_path) -> None:
    root, split = streets
    evaluation = replace(EVALUATION, submission=True)
    measured(split, perfect(split), evaluation, out=str(tmp_path))
    found = measured(split, [], evaluation, out=str(tmp_path))
    assert not list(Path(found.files["submission"]).rglob("*.png"))
    official = evaluate_cityscapes(str(root / "gtFine" / "train"), found.files["submission"])
    assert official.mask == (0.0, 0.0)


def test_photos_that_are_no_frames_cannot_be_submitted(tmp_path) -> None:
    names = {1: "a/aachen_000000_000019_leftImg8bit.png", 2: "holiday.jpg"}
    with pytest.raises(DatasetError, match=r"1 photos have no frame .*holiday\.jpg"):
        write_submission(str(tmp_path / "out"), [], names)
    assert not (tmp_path / "out").exists()


def test_the_band_of_cityscapes_is_narrower_unless_said(streets) -> None:
    _, split = streets
    rows, truth = perfect(split, shift_px=1), truth_from_shards(split)
    own = measured(split, rows)
    assert own.by_metric["boundary"].dilation_ratio == 0.005
    assert "band 0.5% of the diagonal" in own.text
    wide = measured(split, rows, replace(EVALUATION, dilation_ratio=0.02))
    for ratio, found in ((0.005, own), (0.02, wide)):
        expected = evaluate_detections(truth, rows, metric="boundary", dilation_ratio=ratio)
        assert found.metrics["boundary_ap"] == expected.ap
    assert own.metrics["boundary_ap"] < own.metrics["mask_ap"]


def test_a_federated_split_is_measured_by_the_rules_of_lvis(tmp_path) -> None:
    root = lvis(tmp_path / "lvis", images=8)
    split = str(root / "shards")
    ingest_lvis(LvisIngest(root=str(root), split="val", out=split, workers=0))
    rows = perfect(split, shift_px=1)
    # Nobody looked for a zebra in the first image: neither right nor wrong.
    rows.append(rows[0] | {"image_id": 7000, "category_id": 9})
    found = measured(split, rows)
    for metric in ("segm", "boundary", "bbox"):
        expected = evaluate_lvis(truth_from_shards(split), rows, metric=metric)
        assert isinstance(found.by_metric[metric], LvisMetrics)
        for name, value in expected.flat().items():
            np.testing.assert_equal(found.metrics[name], value)
    assert 0 < found.metrics["mask_ap_rare"] < 1
    assert math.isfinite(found.metrics["boundary_ap_frequent"])
    assert found.per_category["cow"]["box_ap"] == 1
    for part in ("LVIS's rules", "rare", "common", "frequent", "nobody looked for"):
        assert part in found.text, part
