"""COCO AP equals published scores and pycocotools, and errors list all problems."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.errors import DatasetError, StorageError
from pipeline.evaluation.bands import band_px
from pipeline.evaluation.metrics import evaluate_detections, evaluate_metrics
from pipeline.evaluation.table import format_metrics, format_summary

SIDE = 64


def square(x: int, y: int, side: int, *, size_hw: tuple[int, int] = (SIDE, SIDE)) -> dict:
    mask = np.zeros(size_hw, np.uint8, order="F")
    mask[y : y + side, x : x + side] = 1
    rle = mask_api.encode(mask)
    return {"size": list(size_hw), "counts": rle["counts"].decode()}


def truth_of(boxes_xyside: list[tuple[int, int, int]], **more: object) -> dict:
    return {
        "images": [{"id": 7, "height": SIDE, "width": SIDE}],
        "categories": [{"id": 3, "name": "car"}, {"id": 90, "name": "brush"}],
        "annotations": [
            {
                "id": number,
                "image_id": 7,
                "category_id": 3,
                "bbox": [x, y, side, side],
                "area": side * side,
                "iscrowd": 0,
                "segmentation": square(x, y, side),
            }
            | more
            for number, (x, y, side) in enumerate(boxes_xyside)
        ],
    }


def detection(x: int, y: int, side: int, score: float = 0.9, **more: object) -> dict:
    return {
        "image_id": 7,
        "category_id": 3,
        "score": score,
        "bbox": [x, y, side, side],
        "segmentation": square(x, y, side),
    } | more


def test_mask_ap_equals_published(real_data: Path) -> None:
    folder = real_data / "evaluators" / "coco_fakesegm100"
    text = (folder / "val2014_fake_eval_res.txt").read_text()
    segm = text.split("type=segm")[1].split("type=bbox")[0]
    published = [float(value) for value in re.findall(r"\] = (\S+)", segm)]

    measured = evaluate_detections(
        str(folder / "instances_val2014_100.json"),
        str(folder / "instances_val2014_fakesegm100_results.json"),
        metric="segm",
    )

    assert len(published) == 12
    assert [round(value, 3) for value in measured.by_published_name().values()] == published
    assert measured.engine == "vernier 0.5.4"


def random_files(seed: int) -> tuple[dict, list[dict]]:
    """Make rectangles of all sizes, crowds, tied scores, more than 100 detections per image."""
    g = np.random.default_rng(seed)
    size_hw = (int(g.integers(60, 200)), int(g.integers(60, 200)))

    def rectangle() -> dict:
        mask = np.zeros(size_hw, np.uint8, order="F")
        y, x = (int(g.integers(side)) for side in size_hw)
        mask[y : y + int(g.integers(1, size_hw[0])), x : x + int(g.integers(1, size_hw[1]))] = 1
        rle = mask_api.encode(mask)
        return {
            "area": int(mask.sum()),
            "bbox": mask_api.toBbox(rle).tolist(),
            "segmentation": {"size": list(size_hw), "counts": rle["counts"].decode()},
        }

    annotations: list[dict] = []
    found: list[dict] = []
    for image_id in range(1, 4):
        for _ in range(int(g.integers(1, 7))):
            kind = int(g.integers(1, 4))
            entry = {"image_id": image_id, "category_id": kind} | rectangle()
            crowd = int(g.random() < 0.15)
            annotations.append(entry | {"id": len(annotations) + 1, "iscrowd": crowd})
            for _ in range(int(g.choice([0, 1, 2, 60]))):
                near = entry if g.random() < 0.5 else rectangle()
                keys = {key: near[key] for key in ("bbox", "segmentation")}
                score = float(np.round(g.random(), 1))
                found.append({"image_id": image_id, "category_id": kind, "score": score} | keys)
    truth = {
        "images": [{"id": n, "height": size_hw[0], "width": size_hw[1]} for n in range(1, 4)],
        "categories": [{"id": n, "name": f"kind{n}"} for n in range(1, 5)],
        "annotations": annotations,
    }
    return truth, found


def run_pycocotools(truth: dict, found: list[dict], *, metric: str) -> COCOeval:
    # With a bbox, the loader would use its area instead of the mask's.
    key = "bbox" if metric == "bbox" else "segmentation"
    keep = {"image_id", "category_id", "score", key}
    rows = [{name: row[name] for name in row if name in keep} for row in found]
    of_truth = COCO()
    of_truth.dataset = json.loads(json.dumps(truth))
    of_truth.createIndex()
    run = COCOeval(of_truth, of_truth.loadRes(rows), metric)
    run.evaluate()
    run.accumulate()
    run.summarize()
    return run


@pytest.mark.parametrize("metric", ["segm", "bbox"])
def test_scores_equal_pycocotools(metric: str) -> None:
    for seed in range(10):
        truth, found = random_files(seed)
        measured = evaluate_detections(truth, found, metric=metric)
        expected = run_pycocotools(truth, found, metric=metric)
        twelve = [math.nan if value == -1 else value for value in expected.stats]
        # Equal to the last bit.
        np.testing.assert_equal(list(measured.by_published_name().values()), twelve)
        precision = expected.eval["precision"][:, :, :, 0, -1]
        for place, ap in enumerate(measured.per_category.values()):
            known = precision[:, :, place][precision[:, :, place] > -1]
            np.testing.assert_equal(ap, known.mean() if known.size else math.nan)


def test_boundary_ap_equals_published(real_data: Path) -> None:
    folder = real_data / "evaluators" / "boundary_small"
    measured = evaluate_detections(
        str(folder / "gt_dataset.json"), str(folder / "dt_dataset.json"), metric="boundary"
    )
    assert measured.ap == pytest.approx(0.6947194719471946, abs=1e-15)
    assert measured.ap50 == pytest.approx(0.6947194719471946, abs=1e-15)
    assert measured.ap75 == pytest.approx(0.6947194719471946, abs=1e-15)
    assert math.isnan(measured.ap_small)
    assert measured.engine == "vernier 0.5.4"


def test_perfect_detections_and_category_without_objects() -> None:
    truth = truth_of([(2, 2, 20), (30, 30, 25)])
    found = [detection(2, 2, 20), detection(30, 30, 25)]
    for measured in evaluate_metrics(truth, found, metrics=("segm", "bbox", "boundary")).values():
        assert measured.ap == pytest.approx(1)
        assert measured.per_category["car"] == pytest.approx(1)
        assert math.isnan(measured.per_category["brush"])
        assert math.isnan(measured.ap_large)
        assert measured.objects == {"car": 2, "brush": 0}


def test_boundary_ap_is_stricter_than_mask_ap() -> None:
    size_hw = (400, 400)
    truth = truth_of([(0, 0, 1)])
    truth["images"][0] |= {"height": 400, "width": 400}
    truth["annotations"][0] |= {
        "segmentation": square(50, 50, 300, size_hw=size_hw),
        "area": 90_000,
    }
    shifted = detection(0, 0, 1, segmentation=square(55, 55, 300, size_hw=size_hw))
    both = evaluate_metrics(truth, [shifted], metrics=("segm", "boundary"))
    assert band_px(height=400, width=400) == 11
    assert both["segm"].ap == pytest.approx(0.9)
    # Bands of 11 px, shifted by 5 px on every side, overlap by less than half.
    assert both["boundary"].ap < 0.2


def test_all_segmentation_formats_give_the_same_scores() -> None:
    polygon = [[2.0, 2.0, 22.0, 2.0, 22.0, 22.0, 2.0, 22.0]]
    plain = {"size": [SIDE, SIDE], "counts": _encode_runs(2, 2, 20)}
    truth = truth_of([(2, 2, 20)])
    forms = [square(2, 2, 20), plain, polygon]
    for form in forms:
        truth["annotations"][0]["segmentation"] = form
        for other in forms:
            found = [detection(2, 2, 20, segmentation=other)]
            assert evaluate_detections(truth, found, metric="segm").ap == pytest.approx(1)
            assert evaluate_detections(truth, found, metric="boundary").ap == pytest.approx(1)


def _encode_runs(x: int, y: int, side: int) -> list[int]:
    runs = [x * SIDE + y]
    for _ in range(side - 1):
        runs += [side, SIDE - side]
    runs += [side]
    return [*runs, SIDE * SIDE - sum(runs)]


def test_annotation_with_id_0_is_matched() -> None:
    truth = truth_of([(2, 2, 20)])
    assert truth["annotations"][0]["id"] == 0
    assert evaluate_detections(truth, [detection(2, 2, 20)], metric="segm").ap == pytest.approx(1)


def test_area_of_the_mask_wins_over_area_of_the_bbox() -> None:
    # The bbox of 40 x 40 is medium, the mask of 20 x 20 small.
    truth = truth_of([(2, 2, 20)])
    found = [detection(2, 2, 20, bbox=[2, 2, 40, 40]), detection(40, 40, 20, score=0.95)]
    with_bbox = evaluate_detections(truth, found, metric="segm")
    for each in found:
        del each["bbox"]
    assert evaluate_detections(truth, found, metric="segm").flat() == pytest.approx(
        with_bbox.flat(), nan_ok=True
    )


def test_missing_area_and_iscrowd_are_filled_in_with_a_notice() -> None:
    truth = truth_of([(2, 2, 20)])
    del truth["annotations"][0]["area"], truth["annotations"][0]["iscrowd"]
    measured = evaluate_detections(truth, [detection(2, 2, 20)], metric="segm")
    assert measured.ap_small == pytest.approx(1)
    assert [n.split(";")[0] for n in measured.notices] == [
        "1 annotations have no iscrowd",
        "1 annotations have no area",
    ]


def test_no_detections_give_ap_0() -> None:
    for metric in ("segm", "bbox", "boundary"):
        measured = evaluate_detections(truth_of([(2, 2, 20)]), [], metric=metric)
        assert measured.ap == 0
        assert "no detections: " in measured.notices[0]


def test_empty_mask_is_a_detection() -> None:
    nothing = {"size": [SIDE, SIDE], "counts": [SIDE * SIDE]}
    found = [detection(2, 2, 20), detection(0, 0, 1, score=0.99, segmentation=nothing)]
    # The empty mask is first and wrong: precision is 1/2 at every recall.
    for metric in ("segm", "boundary"):
        measured = evaluate_detections(truth_of([(2, 2, 20)]), found, metric=metric)
        assert measured.ap == pytest.approx(0.5)


def test_crowds_are_not_objects() -> None:
    truth = truth_of([(2, 2, 20), (30, 30, 25)])
    truth["annotations"][1]["iscrowd"] = 1
    # The second detection is in the crowd: ignored.
    found = [detection(2, 2, 20), detection(32, 32, 8, score=0.99)]
    for measured in evaluate_metrics(truth, found, metrics=("segm", "bbox", "boundary")).values():
        assert measured.ap == pytest.approx(1)
        assert measured.objects["car"] == 1


def test_thin_objects_give_a_notice() -> None:
    truth = {
        "images": [{"id": 7, "height": 480, "width": 640}],
        "categories": [{"id": 3, "name": "car"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 7,
                "category_id": 3,
                "segmentation": square(5, 5, 32, size_hw=(480, 640)),
                "area": 1024,
                "iscrowd": 0,
            }
        ],
    }
    found = [detection(0, 0, 1, segmentation=square(8, 5, 32, size_hw=(480, 640)))]
    both = evaluate_metrics(truth, found, metrics=("segm", "boundary"))
    assert both["boundary"].ap == both["segm"].ap
    assert "1 of 1 objects are no wider than twice the boundary band" in both["boundary"].notices[0]
    assert both["segm"].notices == ()

    # One pixel more leaves an interior outside the band.
    truth["annotations"][0]["segmentation"] = square(5, 5, 33, size_hw=(480, 640))
    assert evaluate_detections(truth, found, metric="boundary").notices == ()


def test_many_images_without_detections_give_a_notice() -> None:
    truth = truth_of([(2, 2, 20)])
    truth["images"] += [{"id": 100 + n, "height": SIDE, "width": SIDE} for n in range(4)]
    (notice,) = evaluate_detections(truth, [detection(2, 2, 20)], metric="segm").notices
    assert notice.startswith("4 of the truth's 5 images have no detection")


def test_all_problems_of_detections() -> None:
    cut = square(2, 2, 20)["counts"][:-3] + "o"
    found = [
        detection(2, 2, 20, image_id=8),
        detection(2, 2, 20, category_id=0),
        detection(2, 2, 20, score=math.nan),
        {"image_id": 7, "category_id": 3, "score": 0.5},
        detection(2, 2, 20, segmentation=square(2, 2, 20, size_hw=(SIDE, 2 * SIDE))),
        detection(2, 2, 20, segmentation={"size": [SIDE, SIDE], "counts": cut}),
        detection(2, 2, 20, segmentation=[[1, 2, 3, 4]]),
        detection(2, 2, 20, segmentation=None),
        detection(2, 2, 20, image_id="7"),
        "car",
        *[detection(2, 2, 20, image_id=1000 + n, score="high") for n in range(5)],
    ]
    with pytest.raises(DatasetError) as caught:
        evaluate_detections(truth_of([(2, 2, 20)]), found, metric="segm")
    text = str(caught.value)
    for expected in (
        "detections: unknown image_id (6)\n    entry 0: image_id 8\n    entry 10: ",
        "unknown category_id (1)\n    entry 1: category_id 0",
        "score is not finite (6)\n    entry 2: score nan",
        "missing key (1)\n    entry 3: no segmentation",
        "entry 4, image 7: size [64, 128], the image has [64, 64]",
        "invalid RLE (1)\n    entry 5, image 7",
        "invalid polygon (1)\n    entry 6, image 7",
        "unknown segmentation format (1)\n    entry 7, image 7: None",
        "id is not an integer (1)\n    entry 8: image_id '7'",
        "not an object (1)\n    entry 9: 'car'",
    ):
        assert expected in text, expected
    assert text.count("rule: ") == 10
    assert text.startswith("10 kinds of problem; nothing was evaluated")


@pytest.mark.parametrize("number", [2**63, -(2**70), 10**400])
def test_numbers_beyond_64_bits_are_listed(number: int) -> None:
    truth = truth_of([(2, 2, 20), (30, 30, 25)])
    truth["annotations"][0]["id"] = number
    truth["annotations"][1]["image_id"] = number
    truth["images"].append({"id": number, "height": 4, "width": 4})
    truth["images"].append({"id": 8, "height": abs(number), "width": 4})
    found = [detection(2, 2, 20, image_id=number), detection(2, 2, 20, category_id=number)]
    with pytest.raises(DatasetError) as caught:
        evaluate_detections(truth, found, metric="segm")
    text = str(caught.value)
    assert "truth: id is not an integer (3)\n    images: id" in text
    assert "rule: ids of images, categories and annotations are integers of at most 64 bits" in text
    assert "truth: image without size (1)\n    image 8" in text
    assert "detections: id is not an integer (2)\n    entry 0: image_id" in text


@pytest.mark.parametrize("side", [2**31 - 1, 2**16])
def test_an_image_with_more_pixels_than_run_lengths_can_count_is_listed(side: int) -> None:
    truth = truth_of([(2, 2, 20)])
    truth["images"][0] |= {"height": side, "width": side}
    with pytest.raises(DatasetError, match=r"image without size \(1\)[^r]*rule: .* 2\^30 pixels"):
        evaluate_detections(truth, [], metric="boundary")


def test_scores_and_areas_beyond_a_float_are_listed() -> None:
    truth = truth_of([(2, 2, 20)])
    truth["annotations"][0]["area"] = 10**400
    with pytest.raises(DatasetError) as caught:
        evaluate_detections(truth, [detection(2, 2, 20, score=10**400)], metric="segm")
    assert "truth: invalid area (1)" in str(caught.value)
    assert "detections: score is not finite (1)" in str(caught.value)


def test_all_problems_of_a_truth() -> None:
    truth = truth_of([(2, 2, 20), (30, 30, 25), (5, 40, 10)])
    del truth["images"][0]["height"]
    truth["images"].append({"id": 7, "height": 4, "width": True})
    truth["annotations"][0]["iscrowd"] = 2
    truth["annotations"][1] |= {"area": -1, "bbox": [0, 0, -3, 5]}
    truth["annotations"][2]["id"] = 1
    with pytest.raises(DatasetError) as caught:
        evaluate_metrics(truth, [detection(2, 2, 20, bbox=[1, 2])], metrics=("segm", "bbox"))
    text = str(caught.value)
    for expected in (
        "truth: duplicate id (2)\n    images: id 7\n    annotations: id 1",
        "truth: image without size (1)\n    image 7",
        "truth: invalid iscrowd (1)\n    annotations[0] (id 0): iscrowd 2",
        "truth: invalid area (1)\n    annotations[1] (id 1): area -1",
        "truth: invalid bbox (1)\n    annotations[1] (id 1): bbox [0, 0, -3, 5]",
        "detections: invalid bbox (1)\n    entry 0: bbox [1, 2]",
    ):
        assert expected in text, expected


@pytest.mark.parametrize(
    ("truth", "detections", "expected"),
    [
        ([], [], "truth: not an annotation file (1)\n    it holds a list"),
        ({"images": []}, [], "it holds keys ['images']"),
        (truth_of([(2, 2, 20)]), {"annotations": []}, "detections: not a list (1)"),
        (truth_of([]), [], "no annotations"),
        (truth_of([(2, 2, 20)]), None, "it is a NoneType"),
    ],
)
def test_wrong_kind_of_file(truth: object, detections: object, expected: str) -> None:
    with pytest.raises(DatasetError, match=re.escape(expected)):
        evaluate_detections(truth, detections, metric="segm")


def test_truncated_and_missing_files(tmp_path: Path) -> None:
    whole = json.dumps(truth_of([(2, 2, 20)]))
    (tmp_path / "truth.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(
        DatasetError, match=r"truth\.json \(\d+ bytes\) is not valid JSON.*truncated"
    ):
        evaluate_detections(str(tmp_path / "truth.json"), [], metric="segm")
    with pytest.raises(StorageError, match=r"none\.json"):
        evaluate_detections(str(tmp_path / "none.json"), [], metric="segm")


def test_polygon_far_outside_raises() -> None:
    # Rasterizing would allocate memory for the length of the outline.
    far = [[0.0, 0.0, 1e12, 0.0, 1e12, 1e12]]
    with pytest.raises(DatasetError, match="invalid polygon"):
        evaluate_detections(
            truth_of([(2, 2, 20)]), [detection(0, 0, 1, segmentation=far)], metric="segm"
        )


def test_no_output_and_inputs_unchanged(capfd: pytest.CaptureFixture) -> None:
    truth, found = truth_of([(2, 2, 20)]), [detection(2, 2, 20)]
    before = json.dumps([truth, found])
    evaluate_metrics(truth, found, metrics=("segm", "bbox", "boundary"))
    assert capfd.readouterr() == ("", "")
    assert json.dumps([truth, found]) == before


def test_format_metrics() -> None:
    truth = truth_of([])
    truth["categories"] = [{"id": n, "name": f"kind{n:02}"} for n in range(1, 21)]
    truth["annotations"] = [
        truth_of([(2, 2, 20)], id=n, category_id=n)["annotations"][0] for n in range(1, 20)
    ]
    found = [detection(2, 2, 20, category_id=n) for n in range(1, 10)]
    measured = evaluate_detections(truth, found, metric="boundary")
    text = format_metrics(measured)
    assert "boundary AP by vernier 0.5.4, band 2% of the diagonal" in text
    assert re.search(r"AP +0\.4737 +0\.4737 +0\.4737 +0\.4737 +- +-", text)
    assert "... 9 more ..." in text
    assert "categories without objects in the truth: 1" in text
    assert re.search(r"kind01 +1 +1\.0000", text)
    assert "kind15" not in format_metrics(measured, categories="none")
    every = format_metrics(measured, categories="all")
    assert all(f"kind{n:02}" in every for n in range(1, 20))


def test_format_summary() -> None:
    measured = evaluate_metrics(
        truth_of([(2, 2, 20)]), [detection(2, 2, 20)], metrics=("segm", "boundary")
    )
    text = format_summary(measured)
    assert re.search(r"^mask +1\.0000", text, re.MULTILINE)
    assert re.search(r"^boundary +1\.0000", text, re.MULTILINE)
    assert re.search(r"^\w+ +1 +1\.0000 +1\.0000$", text, re.MULTILINE)
