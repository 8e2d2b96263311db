"""Objects and detections are matched by hand-countable examples."""

import numpy as np
import pytest
from pycocotools import mask as mask_api

from pipeline.run_report.matching import match_detections, pair_in_order

SIDE = 40


def encode(left: int, top: int, *, side: int = 10) -> dict:
    mask = np.zeros((SIDE, SIDE), np.uint8, order="F")
    mask[top : top + side, left : left + side] = 1
    rle = mask_api.encode(mask)
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def true(key: int, category: int, left: int, top: int, *, crowd: int = 0, side: int = 10) -> dict:
    rle = encode(left, top, side=side)
    area = float(mask_api.area(rle))
    return {"id": key, "image_id": 1, "category_id": category, "iscrowd": crowd, "area": area} | {
        "segmentation": rle,
        "bbox": list(mask_api.toBbox(rle)),
    }


def found(category: int, left: int, top: int, score: float) -> dict:
    return {"image_id": 1, "category_id": category, "score": score} | {
        "segmentation": encode(left, top)
    }


def truth_of(*annotations: dict) -> dict:
    return {
        "images": [{"id": 1, "height": SIDE, "width": SIDE, "file_name": "a.jpg"}],
        "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}],
        "annotations": list(annotations),
    }


TRUTH = truth_of(
    true(1, 7, 0, 0),
    true(2, 7, 20, 0),
    true(3, 9, 0, 20),
    true(4, 9, 25, 25),
    true(5, 7, 14, 14, crowd=1, side=8),
)
ROWS = [
    found(7, 0, 0, 0.9),  # exact
    found(7, 22, 0, 0.8),  # 2 pixels off
    found(7, 21, 0, 0.6),  # the same cat a second time
    found(7, 0, 20, 0.7),  # a dog taken for a cat
    found(9, 30, 5, 0.55),  # nothing
    found(9, 0, 20, 0.3),  # the dog, with a low score
    found(7, 13, 13, 0.9),  # in the crowd
]


def test_pairs_are_in_the_order_of_their_boundary_iou():
    matches = match_detections(TRUTH, ROWS, dilation_ratio=0.02)
    assert [(pair.truth["id"], pair.detection["score"]) for pair in matches.pairs] == [
        (2, 0.8),
        (1, 0.9),
        (3, 0.3),
    ]
    assert [round(pair.boundary_iou, 3) for pair in matches.pairs[1:]] == [1.0, 1.0]
    # The outlines, one pixel wide, of two 10 x 10 squares 2 pixels apart share 2 x 8 pixels.
    assert matches.pairs[0].boundary_iou == 16 / (36 + 36 - 16)
    assert matches.missed == 1


def test_a_detection_is_right_once_for_each_object_of_its_category():
    matches = match_detections(TRUTH, ROWS, dilation_ratio=0.02)
    # The one in the crowd counts neither as right nor as wrong.
    assert sorted(zip(matches.scores, matches.is_right, strict=True)) == [
        (0.3, True),
        (0.55, False),
        (0.6, False),
        (0.7, False),
        (0.8, True),
        (0.9, True),
    ]


def test_confusion_ignores_the_category_in_matching_and_low_scores():
    confusion = match_detections(TRUTH, ROWS, dilation_ratio=0.02).confusion
    assert confusion.tolist() == [
        [2, 0, 0],  # both cats found as cats
        [1, 0, 1],  # one dog taken for a cat, one missed
        [1, 1, 0],  # a second cat, and a dog where there is nothing
    ]


def test_no_detection_misses_everything():
    matches = match_detections(TRUTH, [], dilation_ratio=0.02)
    assert (matches.pairs, matches.missed, len(matches.scores)) == ([], 4, 0)
    assert matches.confusion[:-1, -1].tolist() == [2, 2]


def test_the_input_is_not_changed():
    before = str(TRUTH), str(ROWS)
    match_detections(TRUTH, ROWS, dilation_ratio=0.02)
    assert (str(TRUTH), str(ROWS)) == before


def test_masks_made_for_each_object_are_paired_in_order():
    rows = [found(7, 1, 0, 0.5), found(7, 20, 0, 0.4), found(9, 0, 20, 0.9), found(9, 25, 25, 0.1)]
    pairs = pair_in_order(TRUTH, rows, dilation_ratio=0.02)
    assert [(pair.truth["id"], pair.detection["score"]) for pair in pairs] == [
        (1, 0.5),
        (2, 0.4),
        (3, 0.9),
        (4, 0.1),
    ]
    assert [pair.boundary_iou for pair in pairs[1:]] == [1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="shorter"):
        pair_in_order(TRUTH, rows[:3], dilation_ratio=0.02)
