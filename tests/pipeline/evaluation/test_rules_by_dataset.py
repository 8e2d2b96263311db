"""The dataset of a split decides the rules of its evaluation."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.ingest import ingest_dataset
from pipeline.data.ingest_config import CityscapesIngest, LvisIngest
from pipeline.errors import DatasetError
from pipeline.evaluation.cityscapes_files import evaluate_cityscapes
from pipeline.evaluation.cityscapes_submission import write_submission
from pipeline.evaluation.instances import ChunkDetections, make_instance_task
from pipeline.evaluation.metrics import LvisMetrics, evaluate_detections
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
    ingest_dataset(CityscapesIngest(root=str(root), split="train", out=out, workers=0))
    return root, out


def make_perfect_rows(split: str, *, shift_px: int = 0) -> list[dict]:
    """Turn the objects of the truth into detections, shifted to the right."""
    return [
        {
            "image_id": each["image_id"],
            "category_id": each["category_id"],
            "score": 0.9,
            "bbox": each["bbox"],
            "segmentation": shift_mask(each["segmentation"], shift_px),
        }
        for each in truth_from_shards(split)["annotations"]
        if not each["iscrowd"]
    ]


def shift_mask(rle: dict, shift_px: int) -> dict:
    from pycocotools import mask as mask_api

    mask = np.roll(mask_api.decode(rle), shift_px, axis=1)
    packed = mask_api.encode(np.asfortranarray(mask))
    return packed | {"counts": packed["counts"].decode()}


def measure(
    split: str, rows: list[dict], evaluation: EvaluationConfig = EVALUATION, out: str | None = None
) -> Evaluation:
    ids = tuple(image["id"] for image in truth_from_shards(split)["images"])
    task = make_instance_task(split, DataConfig(), evaluation, out_uri=out)
    return task.compute_metrics([ChunkDetections(rows, ids, ())])


def test_submission_of_perfect_masks(streets, tmp_path) -> None:
    root, split = streets
    rows = make_perfect_rows(split)
    assert len(rows) == 6
    found = measure(split, rows, replace(EVALUATION, submission=True), out=str(tmp_path))
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


def test_submission_without_detections_replaces_old_masks(streets, tmp_path) -> None:
    root, split = streets
    evaluation = replace(EVALUATION, submission=True)
    measure(split, make_perfect_rows(split), evaluation, out=str(tmp_path))
    found = measure(split, [], evaluation, out=str(tmp_path))
    assert not list(Path(found.files["submission"]).rglob("*.png"))
    official = evaluate_cityscapes(str(root / "gtFine" / "train"), found.files["submission"])
    assert official.mask == (0.0, 0.0)


def test_submission_needs_frame_names(tmp_path) -> None:
    names = {1: "a/aachen_000000_000019_leftImg8bit.png", 2: "holiday.jpg"}
    with pytest.raises(DatasetError, match=r"1 file names do not start with .*holiday\.jpg"):
        write_submission(str(tmp_path / "out"), [], names)
    assert not (tmp_path / "out").exists()


def test_default_band_of_cityscapes(streets) -> None:
    _, split = streets
    rows, truth = make_perfect_rows(split, shift_px=1), truth_from_shards(split)
    own = measure(split, rows)
    assert own.by_metric["boundary"].dilation_ratio == 0.005
    assert "band 0.5% of the diagonal" in own.text
    wide = measure(split, rows, replace(EVALUATION, dilation_ratio=0.02))
    for ratio, found in ((0.005, own), (0.02, wide)):
        expected = evaluate_detections(truth, rows, metric="boundary", dilation_ratio=ratio)
        assert found.metrics["boundary_ap"] == expected.ap
    assert own.metrics["boundary_ap"] < own.metrics["mask_ap"]


def test_federated_split_uses_the_rules_of_lvis(tmp_path) -> None:
    root = lvis(tmp_path / "lvis", images=8)
    split = str(root / "shards")
    ingest_dataset(LvisIngest(root=str(root), split="val", out=split, workers=0))
    rows = make_perfect_rows(split, shift_px=1)
    # Zebras were not checked in the first image: the detection is ignored.
    rows.append(rows[0] | {"image_id": 7000, "category_id": 9})
    found = measure(split, rows)
    for metric in ("segm", "boundary", "bbox"):
        expected = evaluate_detections(truth_from_shards(split), rows, metric=metric, rules="lvis")
        assert isinstance(found.by_metric[metric], LvisMetrics)
        for name, value in expected.flat().items():
            np.testing.assert_equal(found.metrics[name], value)
    assert 0 < found.metrics["mask_ap_rare"] < 1
    assert math.isfinite(found.metrics["boundary_ap_frequent"])
    assert found.per_category["cow"]["box_ap"] == 1
    for part in ("LVIS's rules", "rare", "common", "frequent", "were not checked"):
        assert part in found.text, part
