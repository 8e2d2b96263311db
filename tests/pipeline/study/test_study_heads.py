"""A whole study of tiny heads: trained, measured, refined, read back."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as mask_api

from bsm.configs.instance import MaskHeadConfig
from jobs.study_heads import HEADS, with_head
from jobs.study_heads import RECIPE as STUDY
from pipeline.data.manifest import read_manifest
from pipeline.evaluation.split_reader import truth_from_shards
from pipeline.recipe import EvaluationConfig, Recipe
from pipeline.study.ceilings import measure_ceilings
from pipeline.study.heads import (
    StudyRefiner,
    measure_masks,
    read_runs,
    refine_masks,
    study_refiner,
    train_heads,
)
from tests.pipeline.refine.drawn_photos import make_tiny_refiner
from tests.pipeline.training.tiny_run import tiny_recipe, write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("study"), train_images=8, val_images=4)


def study_recipe(shards: Path) -> Recipe:
    recipe = tiny_recipe(shards, "", name="head", num_workers=0)
    backbone = replace(recipe.model.backbone, norm="frozen", freeze_at=5)
    model = replace(recipe.model, trains="masks", backbone=backbone)
    optim = replace(recipe.optim, steps=3, optimizer="adamw", amp=False)
    return replace(recipe, model=model, optim=optim, evaluation=EvaluationConfig(boxes="truth"))


def truth_rows(shards: Path) -> list[dict]:
    truth = truth_from_shards(str(shards / "val"))
    return [each for each in truth["annotations"] if not each["iscrowd"]]


def test_runs_are_trained_once_and_read_back(shards: Path, tmp_path: Path):
    recipe = study_recipe(shards)
    plain = replace(recipe, model=replace(recipe.model, mask_head=MaskHeadConfig(kind="plain")))
    recipes, photos = {"bsm": recipe, "plain": plain}, []

    def refine(photo, masks):
        photos.append(photo.shape)
        assert masks.shape[1:] == photo.shape[:2]
        return np.zeros_like(masks)

    options = {"seeds": (0, 1), "out": tmp_path, "cache": tmp_path / "features"}
    refiner = StudyRefiner("models:/r/1", refine)
    train_heads({"bsm": recipe}, **options, refiner=refiner)
    runs = read_runs(recipes, out=tmp_path)
    assert [(run.head, run.seed) for run in runs] == [
        ("bsm", 0),
        ("bsm, refined", 0),
        ("bsm", 1),
        ("bsm, refined", 1),
    ]
    assert len(photos) == 8, "four photos for each seed"
    rows = truth_rows(shards)
    assert [len(run.iou["narrow"]) for run in runs] == [len(rows)] * 4
    assert runs[0].iou["mask"] != runs[2].iou["mask"], "seeds differ"
    assert runs[1].mean("mask", "all") == 0, "the refiner's masks are measured"
    masks = json.loads((tmp_path / "bsm-0" / "masks.json").read_text())
    assert {row["id"] for row in masks} == {row["id"] for row in rows}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/result.json")}
    train_heads({"bsm": recipe}, **options, refiner=refiner)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "finished runs are kept"
    train_heads({"bsm": recipe}, **options, refiner=refiner._replace(uri="models:/r/2"))
    changed = {path.parent.name for path in before if path.stat().st_mtime_ns != before[path]}
    assert changed == {"bsm-0-refined", "bsm-1-refined"}, "another refiner refines again"
    longer = replace(recipe, optim=replace(recipe.optim, steps=4))
    assert read_runs({"bsm": longer}, out=tmp_path) == [], "results of another recipe are ignored"


def test_the_order_of_masks_does_not_matter_to_a_refiner(shards: Path):
    rows = [
        {"id": row["id"], "image_id": row["image_id"], "segmentation": row["segmentation"]}
        for row in truth_rows(shards)
    ]
    split_uri = str(shards / "val")
    same = refine_masks(rows, split_uri=split_uri, refine=lambda _, masks: masks)
    by_id = {row["id"]: mask_api.decode(row["segmentation"]).sum() for row in rows}
    assert {row["id"]: mask_api.decode(row["segmentation"]).sum() for row in same} == by_id
    measured = measure_masks(same, split_uri=split_uri)
    assert set(measured["iou"]["mask"]) == {1.0}


def test_a_trained_refiner_refines_the_masks_of_a_study(shards: Path):
    rows = truth_rows(shards)
    refiner = study_refiner(make_tiny_refiner(), "models:/r/1")
    refined = refine_masks(rows, split_uri=str(shards / "val"), refine=refiner.refine)
    assert [row["id"] for row in refined] == [row["id"] for row in rows]
    measured = measure_masks(refined, split_uri=str(shards / "val"))
    # It has not learned anything yet, and gives back nearly what it was given.
    assert 0.5 < np.mean(measured["iou"]["mask"]) < 1


def test_finer_grids_have_higher_ceilings(shards: Path):
    recipe = study_recipe(shards)
    runs = {run.head: run for run in measure_ceilings(str(shards / "val"), recipe.data)}
    hard = [runs[f"{side} x {side}, hard"].mean("narrow", "all") for side in (28, 56, 112)]
    assert hard == sorted(hard)
    assert 0.5 < hard[0] < hard[2]
    at_28 = runs["28 x 28, distance"].mean("mask", "all")
    assert at_28 > runs["28 x 28, hard"].mean("mask", "all")


def test_every_head_of_the_job_is_a_valid_recipe(shards: Path):
    manifest = read_manifest(str(shards / "val"))
    recipe = replace(STUDY, model=replace(STUDY.model, num_classes=len(manifest.categories)))
    recipes = {name: with_head(recipe, name, backbone_weights="timm") for name in HEADS}
    widths = {name: each.model.mask_head.channels for name, each in recipes.items()}
    assert {name for name, width in widths.items() if width != 96} == {"plain-wide"}
