"""A truth on which nothing can be measured is an error, and what a score leaves out is a notice."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.ingest import CocoIngest, ingest_dataset
from pipeline.errors import DatasetError
from pipeline.evaluation.boundary_fscore import boundary_f, match_boundaries
from pipeline.evaluation.cityscapes_files import evaluate_cityscapes
from pipeline.evaluation.class_table import format_boundary_f, format_miou
from pipeline.evaluation.evaluate import evaluate_model
from pipeline.evaluation.label_files import LabelFolders, evaluate_boundary_f, evaluate_miou
from pipeline.evaluation.metrics import evaluate_detections
from pipeline.recipe import DataConfig, EvaluationConfig
from tests.pipeline.data.coco_samples import load, save, small_coco
from tests.pipeline.evaluation.test_metrics import detection, truth_of
from tests.pipeline.evaluation.tiny_split import ExactModel


@pytest.mark.parametrize("metric", ["segm", "bbox", "boundary"])
def test_a_truth_of_crowds_alone_is_an_error(metric: str) -> None:
    truth = truth_of([(2, 2, 20), (30, 30, 25)], iscrowd=1)
    message = r"no objects \(1\)\n.*all 2 annotations are crowds \(iscrowd 1\)\n.*write iscrowd 0"
    with pytest.raises(DatasetError, match=message):
        evaluate_detections(truth, [detection(2, 2, 20)], metric=metric)


@pytest.mark.parametrize("metric", ["segm", "bbox", "boundary"])
@pytest.mark.parametrize("area", [0, 1])
def test_an_area_that_is_not_the_masks_is_a_notice(metric: str, area: int) -> None:
    truth = truth_of([(2, 2, 50), (2, 2, 40)], area=area)
    truth["annotations"][1]["area"] = 1600
    measured = evaluate_detections(truth, [detection(2, 2, 50)], metric=metric)
    notice = next(each for each in measured.notices if "area" in each)
    assert notice.startswith("1 annotations have an area that is far from that of their mask")
    assert f"area {area} in image 7" in notice
    # As pycocotools, which takes the area from the file.
    assert not math.isnan(measured.ap_small)


def test_an_lvis_truth_of_areas_of_0_alone_is_an_error() -> None:
    truth = truth_of([(2, 2, 20)], area=0)
    truth["images"][0] |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    truth["categories"] = [each | {"frequency": "c"} for each in truth["categories"]]
    with pytest.raises(DatasetError, match="all 1 annotations have area 0"):
        evaluate_detections(truth, [detection(2, 2, 20)], metric="segm", rules="lvis")


def test_images_that_share_a_file_are_a_notice() -> None:
    truth = truth_of([(2, 2, 20)])
    truth["images"] = [truth["images"][0] | {"id": n, "file_name": "a.jpg"} for n in (7, 8)]
    measured = evaluate_detections(truth, [detection(2, 2, 20)], metric="segm")
    assert measured.notices[0].startswith("1 files are those of several images, such as 'a.jpg'")


def test_an_area_of_another_type_is_a_problem() -> None:
    truth = truth_of([(2, 2, 20)], area="large")
    with pytest.raises(DatasetError, match="invalid area"):
        evaluate_detections(truth, [detection(2, 2, 20)], metric="segm")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_with_a_byte_order_mark_are_read(tmp_path: Path, encoding: str) -> None:
    paths = [str(tmp_path / name) for name in ("truth.json", "found.json")]
    for path, content in zip(paths, (truth_of([(2, 2, 20)]), [detection(2, 2, 20)]), strict=True):
        Path(path).write_bytes(json.dumps(content).encode(encoding))
    assert evaluate_detections(*paths, metric="segm").ap == pytest.approx(1)


def test_json_that_is_nested_too_deeply_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "truth.json").write_bytes(b"[" * 100_000)
    with pytest.raises(DatasetError, match=r"truth\.json .*not valid JSON.*nested too deeply"):
        evaluate_detections(str(tmp_path / "truth.json"), [], metric="segm")


def test_evaluated_images_with_crowds_alone_give_nan(tmp_path: Path) -> None:
    root = small_coco(tmp_path / "coco", images=8)
    doc = load(root)
    first = min(image["id"] for image in doc["images"])
    for entry in doc["annotations"]:
        entry["iscrowd"] = int(entry["image_id"] == first)
    save(root, doc)
    out = str(tmp_path / "out")
    ingest_dataset(CocoIngest(root=str(root), split="tiny", out=out, workers=0))
    data = DataConfig(short_edge_px=(64,), test_short_edge_px=64, long_edge_px=128)
    found = evaluate_model(_BlindModel(), out, data, EvaluationConfig(max_images=1))
    assert math.isnan(found.metrics["mask_ap"])
    assert "no annotations that count" in found.notices[0]


class _BlindModel(ExactModel):
    """Finds nothing."""

    def _detect_one(self, image, size_hw):
        boxes, scores, indices, valid, probs = super()._detect_one(image * 0, size_hw)
        return boxes, scores, indices, valid & False, probs


def folders(root: Path, truth: np.ndarray, found: np.ndarray, *, classes: int = 2) -> LabelFolders:
    for name, labels in (("truth", truth), ("found", found)):
        (root / name).mkdir()
        Image.fromarray(labels.astype(np.uint8)).save(root / name / "a.png")
    return LabelFolders(
        truth=str(root / "truth"), detections=str(root / "found"), classes=str(classes)
    )


def square(value: int) -> np.ndarray:
    labels = np.zeros((40, 40), np.uint8)
    labels[10:30, 10:30] = value
    return labels


def test_masks_of_0_and_255_are_told(tmp_path: Path) -> None:
    measured = evaluate_miou(folders(tmp_path, square(255), square(0)))
    assert measured.miou == 1
    text = format_miou(measured)
    assert (
        "note: the truth has no pixel of 1 of 2 classes, which are not in the mean: class 1" in text
    )
    assert "note: the truth has a single class" in text
    assert "masks of 0 and 255" in text


def test_a_truth_of_void_alone_is_an_error(tmp_path: Path) -> None:
    void = folders(tmp_path, square(0) + 255, square(0))
    for measure in (evaluate_miou, evaluate_boundary_f):
        with pytest.raises(DatasetError, match=r"truth: no objects \(1\)\n +no pixel has"):
            measure(void)


def test_boundary_f_of_a_truth_without_a_border_is_an_error(tmp_path: Path) -> None:
    # Every F would be 1 for a prediction without a border.
    with pytest.raises(DatasetError, match="no pixel has an outline"):
        evaluate_boundary_f(folders(tmp_path, square(0), square(0)))


@pytest.mark.parametrize(("absent", "told"), [("one", "counts as F = 1"), ("skip", "is left out")])
def test_boundary_f_tells_the_classes_that_the_truth_lacks(absent: str, told: str) -> None:
    counts = [match_boundaries(square(1), square(1), num_classes=3)]
    measured = boundary_f(counts, names=["a", "b", "c"], absent=absent)
    (notice,) = measured.notices
    assert notice.startswith("the truth has no outline of 1 of 3 classes")
    assert notice.endswith(f"{told}: c")
    assert f"note: {notice}" in format_boundary_f(measured)


def test_cityscapes_without_an_object_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    (tmp_path / "found").mkdir()
    name = "ulm_000000_000019"
    # A group and an object of 81 pixels.
    ids = np.full((60, 90), 7, np.uint16)
    ids[:30, :30], ids[40:49, 40:49] = 26, 26000
    Image.fromarray(ids).save(tmp_path / "val" / f"{name}_gtFine_instanceIds.png")
    (tmp_path / "found" / f"{name}.txt").write_text("")
    message = r"no objects \(1\)\n +none of 1 frames has an object of at least 100 pixels"
    with pytest.raises(DatasetError, match=message):
        evaluate_cityscapes(str(tmp_path / "val"), str(tmp_path / "found"))
    ids[40:50, 40:50] = 26000
    Image.fromarray(ids).save(tmp_path / "val" / f"{name}_gtFine_instanceIds.png")
    Image.fromarray((ids == 26000).astype(np.uint8)).save(tmp_path / "found" / "0.png")
    (tmp_path / "found" / f"{name}.txt").write_bytes("0.png 26 0.9\r\n".encode("utf-8-sig"))
    assert evaluate_cityscapes(str(tmp_path / "val"), str(tmp_path / "found")).mask.ap == 1
