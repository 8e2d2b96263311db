"""A refiner is evaluated on masks that are the same in every evaluation."""

import json

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_api

from bsm.refine.refine import Refined
from pipeline.evaluation import mask_refinement
from pipeline.evaluation.damaged_truth import damage_truth
from pipeline.evaluation.evaluate import evaluate_model, truth_from_shards
from pipeline.recipe import DataConfig, EvaluationConfig
from pipeline.registry.provenance import describe_evaluation_set
from tests.pipeline.evaluation.tiny_split import (
    SIZE_HW,
    ExactModel,
    draw_objects,
    write_split,
)
from tests.pipeline.refine.drawn_photos import make_tiny_refiner


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return write_split(tmp_path_factory.mktemp("tiny") / "val")


def encode(mask):
    packed = mask_api.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": packed["counts"]}


def keep(_model, _image, masks):
    return Refined(masks, torch.full((len(masks),), 0.5))


def test_damage_depends_on_the_ids_alone():
    rles = [encode(mask) for _, mask in draw_objects(3)]
    damaged = damage_truth(rles, image_id=5, annotation_ids=[7, 8, 9])
    assert damaged == damage_truth(rles, image_id=5, annotation_ids=[7, 8, 9])
    others = damage_truth(rles, image_id=6, annotation_ids=[7, 8, 9])
    assert all(mine != other for mine, other in zip(damaged, others, strict=True))
    ious = [mask_api.iou([a], [b], [0])[0, 0] for a, b in zip(rles, damaged, strict=True)]
    assert 0.3 < min(ious) < 0.99
    assert {tuple(each["size"]) for each in damaged} == {SIZE_HW}


def test_an_object_that_fills_the_image_and_one_pixel_can_be_damaged():
    whole, point = np.ones((300, 40), np.uint8), np.zeros((300, 40), np.uint8)
    point[299, 0] = 1
    damaged = damage_truth([encode(whole), encode(point)], image_id=1, annotation_ids=[1, 2])
    assert [mask_api.area(each) > 0 for each in damaged] == [True, True]


def test_a_refiner_that_changes_nothing_scores_like_the_given_masks(split, monkeypatch, tmp_path):
    monkeypatch.setattr(mask_refinement, "refine_masks", keep)
    found = evaluate_model(
        make_tiny_refiner(), split, DataConfig(), EvaluationConfig(), out_uri=str(tmp_path)
    )
    names = ("mask_iou", "boundary_iou", "boundary_iou_narrow")
    for name in names:
        assert found.metrics[name] == found.metrics[f"given_{name}"] < 0.97
        assert np.isnan(found.metrics[f"{name}_large"])
    assert found.metrics["boundary_iou_narrow"] < found.metrics["boundary_iou"]
    assert found.metrics["images"] == 20
    rows = json.loads((tmp_path / "refined.json").read_text())
    assert found.files == {"refined": str(tmp_path / "refined.json")}
    truth = truth_from_shards(split)["annotations"]
    assert len(rows) == len(truth)
    assert [row["image_id"] for row in rows] == sorted(row["image_id"] for row in rows)
    # Damaged, but the masks of the objects that they name.
    assert {row["category_id"] for row in rows} == {each["category_id"] for each in truth}


def test_a_refiner_changes_the_scores_and_large_masks_need_little_memory(split):
    small = EvaluationConfig(max_images=6, paste_bytes=1)
    first = evaluate_model(make_tiny_refiner(), split, DataConfig(), small)
    assert first.metrics["mask_iou"] != first.metrics["given_mask_iou"]
    assert "mask IoU" in first.text


def test_nothing_to_refine_is_said(tmp_path):
    # Image 0 has no objects.
    empty = write_split(tmp_path / "empty", row_groups=((1,),))
    found = evaluate_model(make_tiny_refiner(), empty, DataConfig(), EvaluationConfig())
    assert np.isnan(found.metrics["mask_iou"])
    assert "no masks to refine" in found.text


def test_a_detector_is_evaluated_with_refined_masks(split, monkeypatch):
    def shrink(_model, _image, masks):
        smaller = -torch.nn.functional.max_pool2d(-masks.float()[:, None], 7, 1, 3)[:, 0]
        return Refined(smaller > 0, torch.ones(len(masks)))

    monkeypatch.setattr(mask_refinement, "refine_masks", shrink)
    data = DataConfig(short_edge_px=(96,), test_short_edge_px=96, long_edge_px=128)
    for boxes in ("predicted", "truth"):
        settings = EvaluationConfig(boxes=boxes)
        plain = evaluate_model(ExactModel(), split, data, settings).metrics
        refined = evaluate_model(
            ExactModel(), split, data, settings, refiner=make_tiny_refiner()
        ).metrics
        assert plain["mask_ap"] > 0.95
        assert refined["mask_ap"] < 0.8
        assert refined["box_ap"] == plain["box_ap"]
    plainly, by_name = (
        describe_evaluation_set("abc", 3, EvaluationConfig(), refined_by=name)
        for name in ("", "models:/r/1")
    )
    assert (plainly, by_name) == ("abc, 3 images", "abc, 3 images, masks refined by models:/r/1")
