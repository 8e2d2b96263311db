"""Problems of a run that are found before it starts, each with what to type."""

import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from bsm.build import build_model
from bsm.configs.semantic import DeepLabConfig
from pipeline.data.ingest import CocoIngest, ingest_dataset
from pipeline.data.manifest import Category, Manifest, read_manifest
from pipeline.data.shared_photos import find_shared_photos
from pipeline.errors import DatasetError, RecipeError
from pipeline.training import preflight, start_weights
from pipeline.training.preflight import prepare_run
from pipeline.training.start_weights import StartWeights
from tests.pipeline.data.coco_samples import SPLIT, load, save, small_coco
from tests.pipeline.training.tiny_run import tiny_recipe, write_shards


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("preflight")


@pytest.fixture(scope="module")
def shards(folder) -> Path:
    return write_shards(folder, train_images=12)


def change_manifest(monkeypatch, split: str, **changes) -> None:
    """Let preflight read a split's manifest with other values."""

    def read(uri):
        manifest = read_manifest(uri)
        return replace(manifest, **changes) if uri.endswith(f"/{split}") else manifest

    monkeypatch.setattr(preflight, "read_manifest", read)


def test_a_wrong_number_of_classes_names_the_flag(shards, folder):
    recipe = tiny_recipe(shards, folder / "none", name="classes", num_workers=0)
    with pytest.raises(RecipeError, match=r"has 5 categories .*blob.*--model\.num-classes 5"):
        prepare_run(replace(recipe, model=replace(recipe.model, num_classes=80)))
    assert not (folder / "none").exists()


def test_all_problems_are_reported_at_once(shards, folder):
    recipe = tiny_recipe(shards, folder / "none", name="all", num_workers=2)
    backbone = replace(recipe.model.backbone, norm="sync")
    wrong = replace(
        recipe,
        model=replace(recipe.model, backbone=backbone),
        data=replace(recipe.data, train_split="trian", val_split="vla"),
        checkpoint=replace(recipe.checkpoint, best_metric="miou"),
    )
    with pytest.raises(RecipeError) as error:
        prepare_run(wrong)
    best = "checkpoint.best_metric miou is no metric of this evaluation, which gives boundary_ap, "
    for part in ("norm is sync", best, "shards/trian", "shards/vla", "jobs/ingest.py"):
        assert part in str(error.value)


def test_augmentation_that_a_model_does_not_have_is_refused(shards, folder):
    recipe = tiny_recipe(shards, folder / "none", name="square", num_workers=0)
    with pytest.raises(RecipeError, match=r"data\.crop_px is the square of .*, which is off"):
        prepare_run(replace(recipe, data=replace(recipe.data, crop_px=64)))
    data = replace(recipe.data, copy_paste=0.5, scale_jitter=(0.1, 2.0))
    with pytest.raises(RecipeError) as error:
        prepare_run(replace(recipe, model=DeepLabConfig(num_classes=5), data=data))
    for name in ("copy_paste", "scale_jitter"):
        assert f"data.{name} is only for instance and refine models" in str(error.value)


def test_a_semantic_model_is_refused_on_instance_shards(shards, folder):
    recipe = tiny_recipe(shards, folder / "none", name="semantic", num_workers=0)
    with pytest.raises(RecipeError) as error:
        prepare_run(replace(recipe, model=DeepLabConfig(num_classes=5)))
    for part in (
        "train holds instance shards; this recipe trains semantic models",
        "val holds instance shards",
        "data.short_edge_px is only for instance and refine models, and this is a semantic model",
    ):
        assert part in str(error.value)


def test_an_unknown_backbone_is_a_recipe_error(shards, folder):
    recipe = tiny_recipe(shards, folder / "none", name="backbone", num_workers=0)
    backbone = replace(recipe.model.backbone, name="resnet5000")
    with pytest.raises(RecipeError, match="resnet5000"):
        prepare_run(replace(recipe, model=replace(recipe.model, backbone=backbone)))


def test_weights_that_do_not_fit_are_a_recipe_error(shards, folder, monkeypatch):
    monkeypatch.chdir(folder)
    recipe = tiny_recipe(shards, folder / "none", name="weights", num_workers=0)
    other = build_model(replace(recipe.model, num_classes=2))
    torch.save(other.state_dict(), "other.pth")
    with pytest.raises(RecipeError, match=r"other\.pth.*--model\.weights-leave-out box_head"):
        prepare_run(replace(recipe, model=replace(recipe.model, weights="other.pth")))
    with pytest.raises(RecipeError, match=rf"{folder}/nowhere\.pth.*no such file"):
        prepare_run(replace(recipe, model=replace(recipe.model, weights="nowhere.pth")))


def test_published_weights_of_another_model_are_answered_with_its_flags(
    shards, folder, monkeypatch
):
    name = "torchvision:MaskRCNN_ResNet50_FPN_Weights.COCO_V1"
    recipe = tiny_recipe(shards, folder / "none", name="published", num_workers=0)
    state = build_model(recipe.model).state_dict()
    torch.save({f"{key}x": value for key, value in state.items()}, folder / "published.pth")
    monkeypatch.setattr(start_weights, "fetch_weights", lambda *_, **__: folder / "published.pth")
    model = replace(recipe.model, weights=name)
    with pytest.raises(RecipeError, match="was trained by other rules") as caught:
        prepare_run(replace(recipe, model=model))
    flags = "--model.box-convention torchvision --model.backbone.norm-eps 0.0"
    assert str(caught.value).endswith(f"Type: {flags}")
    backbone = replace(model.backbone, norm="frozen", norm_eps=0.0)
    model = replace(model, box_convention="torchvision", backbone=backbone)
    with pytest.raises(RecipeError, match="COCO_V1: has the names of no known model") as caught:
        prepare_run(replace(recipe, model=model))
    assert "These weights belong to a model with: --model.num-classes 90" in str(caught.value)
    assert not (folder / "none" / "published" / "start.pth").exists()


def test_weights_with_nan_are_named_before_training(shards, folder, monkeypatch):
    monkeypatch.chdir(folder)
    recipe = tiny_recipe(shards, folder / "none", name="nan", num_workers=0)
    state = build_model(recipe.model).state_dict()
    next(iter(state.values())).fill_(torch.nan)
    torch.save(state, "nan.pth")
    with pytest.raises(RecipeError, match=r"nan\.pth: 1 of \d+ tensors hold NaN or infinity"):
        prepare_run(replace(recipe, model=replace(recipe.model, weights="nan.pth")))


def test_the_environment_is_checked_with_the_rest(shards, folder, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    recipe = tiny_recipe(shards, folder / "a%2Fb", name="environment", num_workers=1)
    with pytest.raises(RecipeError) as error:
        prepare_run(replace(recipe, model=replace(recipe.model, num_classes=9)))
    for part in (
        "a%2Fb/mlflow.db: MLflow cannot",
        "RAY_ADDRESS=127.0.0.1:1",
        "--model.num-classes",
    ):
        assert part in str(error.value)
    assert not (folder / "a%2Fb").exists()


def test_shards_that_changed_after_ingest_are_refused(tmp_path):
    shards = write_shards(tmp_path, train_images=8)
    next((shards / "train").glob("part-*.parquet")).write_bytes(b"PAR1")
    with pytest.raises(DatasetError, match=r"part-00000\.parquet"):
        prepare_run(tiny_recipe(shards, tmp_path / "runs", name="cut", num_workers=0))


def test_paths_become_absolute(shards, folder, monkeypatch):
    monkeypatch.chdir(folder)
    recipe = replace(tiny_recipe(shards, folder, name="paths", num_workers=0), storage="runs_here")
    prepared = prepare_run(replace(recipe, data=replace(recipe.data, root="shards")))
    assert prepared.run_uri == str(folder / "runs_here" / "paths")
    assert prepared.recipe.data.root == str(folder / "shards")
    assert prepared.identity.recipe.storage == "runs_here"


def test_splits_with_different_categories_are_refused(shards, folder, monkeypatch):
    recipe = tiny_recipe(shards, folder / "none", name="categories", num_workers=0)
    change_manifest(monkeypatch, "val", categories=name_categories("wolf", "dog"))
    with pytest.raises(RecipeError, match=r"/val has other categories \(wolf, dog\) than .*/train"):
        prepare_run(recipe)


def test_long_lists_of_categories_are_cut(shards, folder, monkeypatch):
    recipe = tiny_recipe(shards, folder / "none", name="long", num_workers=0)
    change_manifest(monkeypatch, "train", categories=name_categories(*"abcdefghijk"))
    with pytest.raises(RecipeError, match=r"11 categories \(a, b, c, d, e, f, g, h, and 3 more\)"):
        prepare_run(recipe)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"annotations": 0, "category_images": (0,) * 5}, "it has no annotation"),
        ({"category_images": (0,) * 5}, r"all of its \d+ annotations are crowds"),
    ],
)
def test_training_data_without_an_object_are_refused(shards, folder, monkeypatch, changes, reason):
    recipe = tiny_recipe(shards, folder / "none", name="nothing", num_workers=0)
    change_manifest(monkeypatch, "train", **changes)
    message = rf"/train has nothing to learn: {reason}.*ingest it again with --overwrite"
    with pytest.raises(RecipeError, match=message):
        prepare_run(recipe)
    assert not (folder / "none").exists()


def test_label_maps_of_one_class_are_refused():
    names = name_categories("background", "polyp")
    train = Manifest(
        task="semantic",
        categories=names,
        shards=(),
        images=4,
        annotations=0,
        fingerprint="",
        category_px=(900, 0),
    )
    (problem,) = preflight._content_problems(train, train, train_uri="train", val_uri="val")
    assert "background is the only class with a pixel" in problem
    one = replace(train, categories=names[:1], category_px=(900,))
    assert not preflight._content_problems(one, one, train_uri="train", val_uri="val")


def test_a_category_without_object_and_an_empty_val_are_warnings(
    shards, folder, monkeypatch, caplog
):
    recipe = tiny_recipe(shards, folder / "runs", name="some", num_workers=0)
    change_manifest(monkeypatch, "train", category_images=(3, 0, 3, 3, 0))
    prepare_run(recipe)
    assert "2 of 5 categories have no object: " in caplog.text
    change_manifest(monkeypatch, "val", annotations=0)
    prepare_run(recipe)
    assert "/val: there is nothing to measure: it has no annotation" in caplog.text


def test_only_cityscapes_has_a_submission_format(shards, folder, monkeypatch):
    recipe = tiny_recipe(shards, folder / "none", name="submission", num_workers=0)
    recipe = replace(recipe, evaluation=replace(recipe.evaluation, submission=True))
    with pytest.raises(RecipeError, match=r"/val was made from coco\. Type: --evaluation\.no-sub"):
        prepare_run(recipe)
    change_manifest(monkeypatch, "val", source="")
    with pytest.raises(RecipeError, match=r"/val was made from another source"):
        prepare_run(recipe)


def test_a_gpu_that_is_missing_is_a_recipe_error(shards, folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    recipe = tiny_recipe(shards, folder / "none", name="gpu", num_workers=0)
    with pytest.raises(RecipeError, match=r"finds no GPU .*Type: --scale\.no-use-gpu"):
        prepare_run(replace(recipe, scale=replace(recipe.scale, use_gpu=True)))


@pytest.mark.parametrize(
    ("rejects", "fixed", "text"),
    [
        ({}, {}, "ok, nothing dropped at ingest"),
        ({"empty": 2, "tiny": 1}, {}, "ok, dropped at ingest: 2 empty, 1 tiny"),
        ({}, {"clipped": 3}, "ok, nothing dropped at ingest; fixed: 3 clipped"),
    ],
)
def test_the_audit_lists_what_ingest_dropped_and_fixed(shards, rejects, fixed, text):
    train = read_manifest(f"{shards}/train")
    assert preflight._summarize_audit(replace(train, rejects=rejects, fixed=fixed)) == text


def test_photos_of_training_in_the_validation_split_are_a_warning(shards, folder, caplog):
    recipe = tiny_recipe(shards, folder / "none", name="shared", num_workers=0)
    prepare_run(recipe)
    assert "too good" not in caplog.text
    shutil.copytree(shards / "train", shards / "again")
    prepare_run(replace(recipe, data=replace(recipe.data, val_split="again")))
    assert re.search(
        r"/again shares 12 photos with .*/train, so its scores will be too good: .*, and 4 more",
        caplog.text,
    )


def test_equal_names_of_different_photos_are_no_shared_photos(tmp_path):
    shared = ("b.png", "d.png")
    for split in ("train", "val"):
        names = ("a.png", "b.png", "c.png") if split == "val" else ("d.png", "b.png", "a.png")
        root = tmp_path / split
        small_coco(root, images=3)
        doc = load(root)
        for number, (entry, name) in enumerate(zip(doc["images"], names, strict=True)):
            photo = root / SPLIT / name
            (root / SPLIT / entry["file_name"]).rename(photo)
            color = 40 if name in shared else 10 * number + 100 * (split == "val")
            size = (entry["width"], entry["height"])
            Image.new("RGB", size, (color, 0, 0)).save(photo)
            entry["file_name"] = name
        save(root, doc)
        out = str(tmp_path / "shards" / split)
        ingest_dataset(CocoIngest(root=str(root), split=SPLIT, out=out, workers=0))
    uris = [str(tmp_path / "shards" / split) for split in ("train", "val")]
    assert find_shared_photos(*uris) == ["b.png"]


def test_equally_many_other_categories_are_a_warning(shards, caplog):
    train = replace(read_manifest(f"{shards}/train"), categories=name_categories("cat", "dog"))

    def warn(*names: str) -> str:
        caplog.clear()
        model = DeepLabConfig()
        start = StartWeights(
            model=model,
            local_model=model,
            version="models:/far/1",
            categories=name_categories(*names),
        )
        with caplog.at_level(logging.WARNING, logger="pipeline"):
            preflight._warn_of_other_categories(start, train)
        return caplog.text

    assert "models:/far/1 was trained on other categories (cat, cow) than the data has" in warn(
        "cat", "cow"
    )
    assert warn("cat", "dog") == ""
    # Heads for another number of categories do not fit, which is an error.
    assert warn("cat") == ""


def name_categories(*names: str) -> tuple[Category, ...]:
    return tuple(
        Category(category_id=index + 1, category_index=index, name=name)
        for index, name in enumerate(names)
    )


def test_a_prepared_run_has_values_only(shards, folder):
    recipe = tiny_recipe(shards, folder / "runs", name="prepared", num_workers=0)
    prepared = prepare_run(recipe)
    model = build_model(recipe.model)
    assert prepared.parameters == sum(p.numel() for p in model.parameters())
    assert prepared.trained_parameters == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )
    assert (prepared.train_images, prepared.resume_from, prepared.started_from) == (12, None, "")
