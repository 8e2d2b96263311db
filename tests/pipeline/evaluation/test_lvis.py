"""LVIS AP equals the lvis package's, also for boundary AP, and errors list all problems."""

import copy
import json
import math
import re
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import lvis
import numpy as np
import pytest
from pycocotools import mask as mask_api

from pipeline.errors import DatasetError, RecipeError
from pipeline.evaluation.bands import band_px
from pipeline.evaluation.metrics import evaluate_detections
from pipeline.evaluation.table import format_metrics

evaluate_lvis = partial(evaluate_detections, rules="lvis")

pytestmark = pytest.mark.filterwarnings("ignore:The 'warn' method is deprecated")


@pytest.fixture(autouse=True)
def _restore_np_float(monkeypatch: pytest.MonkeyPatch) -> None:
    # The lvis package uses np.float, which numpy removed.
    monkeypatch.setattr(np, "float", float, raising=False)


def rle(mask: np.ndarray) -> dict[str, Any]:
    packed = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": packed["counts"].decode()}


def compute_area_and_box(segmentation: dict[str, Any]) -> dict[str, Any]:
    box = mask_api.toBbox(segmentation).tolist()
    return {"area": int(mask_api.area(segmentation)), "bbox": box}


def random_files(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Make rectangles with tied scores, and every case of the federated rules."""
    g = np.random.default_rng(seed)
    size_hw = (int(g.integers(30, 160)), int(g.integers(30, 160)))
    ids = [3 * n + 1 for n in range(int(g.integers(2, 6)))]
    categories = [{"id": n, "name": f"kind{n}", "frequency": "rcf"[g.integers(3)]} for n in ids]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []

    def rectangle() -> np.ndarray:
        mask = np.zeros(size_hw, bool)
        y, x = g.integers(size_hw[0]), g.integers(size_hw[1])
        mask[y : y + g.integers(1, size_hw[0]), x : x + g.integers(1, size_hw[1])] = True
        return mask

    for image_id in range(2, 2 + int(g.integers(2, 6))):
        objects = [(rectangle(), int(g.choice(ids))) for _ in range(int(g.integers(1, 6)))]
        present = {category for _, category in objects}
        images.append(
            {
                "id": image_id,
                "height": size_hw[0],
                "width": size_hw[1],
                # Also contradictions: absent but annotated, not exhaustive but not present.
                "neg_category_ids": [n for n in ids if g.random() < (0.1 if n in present else 0.5)],
                "not_exhaustive_category_ids": [n for n in ids if g.random() < 0.3],
            }
        )
        for mask, category in objects:
            entry = {"image_id": image_id, "category_id": category, "segmentation": rle(mask)}
            annotations.append(
                {"id": len(annotations) + 1, **entry, **compute_area_and_box(entry["segmentation"])}
            )
        for _ in range(int(g.integers(0, 14))):
            mask, category = objects[g.integers(len(objects))]
            mask = np.roll(mask, tuple(g.integers(-3, 4, 2)), (0, 1))
            entry = {"image_id": image_id, "category_id": category, "segmentation": rle(mask)}
            if g.random() < 0.4:
                entry |= {"category_id": int(g.choice(ids)), "segmentation": rle(rectangle())}
            if g.random() < 0.05:
                entry |= {"segmentation": rle(np.zeros(size_hw))}
            box = compute_area_and_box(entry["segmentation"])["bbox"]
            found.append(entry | {"bbox": box, "score": float(np.round(g.random(), 1))})
    return {"images": images, "categories": categories, "annotations": annotations}, found


class BoundaryEval(lvis.LVISEval):
    """The lvis package with the overlap of boundary-iou-api, from its definition."""

    def __init__(self, truth: str, found: list[dict[str, Any]], *, dilation_ratio: float) -> None:
        super().__init__(truth, found, "segm")
        self.ratio = dilation_ratio

    def compute_iou(self, img_id: int, cat_id: int) -> np.ndarray:
        masks = super().compute_iou(img_id, cat_id)
        truth, found = self._get_gt_dt(img_id, cat_id)
        if not truth or not found:
            return masks
        best_first = np.argsort([-each["score"] for each in found], kind="mergesort")
        found = [self._band(found[place]) for place in best_first]
        bands = mask_api.iou(found, list(map(self._band, truth)), [0] * len(truth))
        return np.minimum(masks, bands)

    def _band(self, entry: dict[str, Any]) -> dict[str, Any]:
        mask = mask_api.decode(entry["segmentation"])
        steps = max(1, round(self.ratio * float(np.sqrt(mask.shape[0] ** 2 + mask.shape[1] ** 2))))
        inside = cv2.erode(np.pad(mask, 1), np.ones((3, 3), np.uint8), iterations=steps)
        return mask_api.encode(np.asfortranarray(mask - inside[1:-1, 1:-1]))


def run_lvis_package(
    truth: dict[str, Any],
    found: list[dict[str, Any]],
    *,
    metric: str,
    tmp_path: Path,
    dilation_ratio: float = 0.02,
) -> dict[str, float]:
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    # Without a bbox, the package uses the area of the mask.
    keys = {"image_id", "category_id", "score", "bbox" if metric == "bbox" else "segmentation"}
    rows = [{k: copy.deepcopy(v) for k, v in row.items() if k in keys} for row in found]
    path = str(tmp_path / "truth.json")
    if metric == "boundary":
        run = BoundaryEval(path, rows, dilation_ratio=dilation_ratio)
    else:
        run = lvis.LVISEval(path, rows, metric)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.run()
    return {name: math.nan if v == -1 else float(v) for name, v in run.get_results().items()}


@pytest.mark.parametrize("metric", ["segm", "bbox", "boundary"])
def test_scores_equal_the_lvis_package(metric: str, tmp_path: Path) -> None:
    for seed in range(12):
        truth, found = random_files(seed)
        measured = evaluate_lvis(truth, found, metric=metric, dilation_ratio=0.03)
        expected = run_lvis_package(
            truth, found, metric=metric, tmp_path=tmp_path, dilation_ratio=0.03
        )
        assert len(expected) == 13
        # Equal to the last bit.
        np.testing.assert_equal(measured.by_published_name(), expected, err_msg=f"seed {seed}")
        assert measured.engine == "vernier 0.5.4"


def test_scores_of_a_real_truth_equal_the_lvis_package(real_data: Path, tmp_path: Path) -> None:
    (path,) = (real_data / "lvis_mini").rglob("*.json")
    truth = json.loads(path.read_text())
    g = np.random.default_rng(0)
    sizes = {each["id"]: (each["height"], each["width"]) for each in truth["images"]}
    found = []
    for entry in truth["annotations"]:
        painted = mask_api.frPyObjects(entry["segmentation"], *sizes[entry["image_id"]])
        mask = mask_api.decode(mask_api.merge(painted))
        moved = rle(np.roll(mask, tuple(g.integers(-4, 5, 2)), (0, 1)))
        other = int(g.choice([each["category_id"] for each in truth["annotations"]]))
        found += [
            {
                "image_id": entry["image_id"],
                "category_id": category,
                "segmentation": moved,
                "bbox": compute_area_and_box(moved)["bbox"],
                "score": float(g.random()),
            }
            for category in (entry["category_id"], other)
        ]
    for metric in ("segm", "bbox", "boundary"):
        measured = evaluate_lvis(truth, found, metric=metric)
        expected = run_lvis_package(truth, found, metric=metric, tmp_path=tmp_path)
        np.testing.assert_equal(measured.by_published_name(), expected)
        assert 0 < measured.ap < 1


def make_files(*, categories: str = "rcf") -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Make one image with category 1, without category 2; category 3 was not checked."""
    mask = np.zeros((64, 64), bool)
    mask[5:45, 5:45] = True
    truth = {
        "images": [
            {
                "id": 7,
                "height": 64,
                "width": 64,
                "neg_category_ids": [2],
                "not_exhaustive_category_ids": [],
            }
        ],
        "categories": [
            {"id": n, "name": f"kind{n}", "frequency": each}
            for n, each in enumerate(categories, start=1)
        ],
        "annotations": [
            {"id": 0, "image_id": 7, "category_id": 1, "segmentation": rle(mask)}
            | compute_area_and_box(rle(mask))
        ],
    }
    row = {"image_id": 7, "category_id": 1, "score": 0.5, "segmentation": rle(mask)}
    return truth, [row | {"bbox": compute_area_and_box(rle(mask))["bbox"]}]


def test_detections_of_unchecked_categories_are_ignored() -> None:
    truth, (right,) = make_files()
    wrong = right | {"segmentation": rle(np.eye(64)), "score": 0.9}
    # Its category is present: precision is 1/2 at every recall.
    assert evaluate_lvis(truth, [right, wrong], metric="segm").ap == pytest.approx(0.5)
    unchecked = evaluate_lvis(truth, [right, wrong | {"category_id": 3}], metric="segm")
    assert unchecked.ap == pytest.approx(1)
    assert "1 of 2 detections are of categories that were not checked" in unchecked.notices[0]

    truth["images"][0]["not_exhaustive_category_ids"] = [1]
    assert evaluate_lvis(truth, [right, wrong], metric="segm").ap == pytest.approx(1)


def test_rare_common_and_frequent() -> None:
    truth, (right,) = make_files(categories="frc")
    measured = evaluate_lvis(truth, [right], metric="segm")
    assert measured.ap_frequent == pytest.approx(1)
    assert math.isnan(measured.ap_rare)
    assert math.isnan(measured.ap_common)
    assert measured.objects == {"kind1": 1, "kind2": 0, "kind3": 0}
    assert measured.flat()["mask_ap_frequent"] == pytest.approx(1)
    text = format_metrics(measured, categories="all")
    assert "LVIS mask AP by vernier" in text
    assert re.search(r"kind1 +1 +1.0000", text)


def test_best_300_detections_per_image() -> None:
    truth, (right,) = make_files()
    wrong = right | {"category_id": 2, "score": 0.9}
    assert evaluate_lvis(truth, [*[wrong] * 299, right], metric="segm").ap == pytest.approx(1)
    cut = evaluate_lvis(truth, [*[wrong] * 300, right], metric="segm")
    assert cut.ap == 0
    assert cut.notices[0].startswith("1 detections are beyond the best 300")


def test_detections_of_unknown_categories() -> None:
    truth, (right,) = make_files()
    measured = evaluate_lvis(truth, [right, right | {"category_id": 80}], metric="segm")
    assert measured.ap == pytest.approx(1)
    assert measured.notices[0].startswith("1 detections are of 1 categories that the truth does")
    with pytest.raises(DatasetError, match=r"unknown category_id \(1\)\n    entry 1: .* 0\n"):
        evaluate_lvis(truth, [right, right | {"category_id": 0}], metric="segm")
    with pytest.raises(DatasetError, match="unknown category_id"):
        evaluate_lvis(truth, [right | {"category_id": 80}], metric="segm")


def test_coco_truth_raises() -> None:
    truth, found = make_files()
    del truth["images"][0]["neg_category_ids"], truth["categories"][1]["frequency"]
    truth["images"][0]["not_exhaustive_category_ids"] = ["1"]
    found[0]["score"] = math.inf
    with pytest.raises(DatasetError) as caught:
        evaluate_lvis(truth, found, metric="segm")
    text = str(caught.value)
    for expected in (
        "image without LVIS fields (1)\n    image 7: no neg_category_ids",
        "for COCO annotations use --metric segm",
        "category without frequency (1)\n    category 2: frequency None",
        "id is not an integer (1)\n    image 7: not_exhaustive_category_ids holds '1'",
        "detections: score is not finite",
    ):
        assert expected in text, expected


def test_invalid_dilation_ratio_raises_before_reading_files() -> None:
    assert band_px(height=480, width=640) == 16
    assert band_px(height=480, width=640, dilation_ratio=0.0001) == 1
    for ratio in (0.0, 2.0, math.nan):
        with pytest.raises(RecipeError, match="as a share of the image diagonal"):
            evaluate_lvis("none.json", "none.json", metric="boundary", dilation_ratio=ratio)
