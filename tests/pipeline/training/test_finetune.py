"""Values that are derived for fine-tuning, from the number of images and the model's own recipe."""

from dataclasses import replace

import pytest

from bsm.configs.instance import MaskRCNNConfig
from bsm.configs.semantic import DeepLabConfig
from pipeline.errors import RecipeError
from pipeline.recipe import DataConfig, OptimConfig, Recipe, ScaleConfig
from pipeline.training.finetune import fit_to_images, name_run

SGD = OptimConfig()
ADAM = OptimConfig(optimizer="adamw", global_batch=8, lr_per_image=0.001 / 8)


def derive(images: int, *given: str, start: OptimConfig = SGD, **changes) -> Recipe:
    recipe = Recipe(name="tuned", optim=start, scale=ScaleConfig(num_workers=0))
    recipe = replace(recipe, **changes)
    return fit_to_images(recipe, given=given, images=images, start=start)[0]


@pytest.mark.parametrize(
    ("images", "batch", "steps"),
    [(1, 2, 300), (10, 2, 300), (60, 2, 360), (200, 8, 300), (500, 16, 375), (118_000, 16, 88_500)],
)
def test_batch_and_steps_follow_the_number_of_images(images, batch, steps):
    optim = derive(images).optim
    assert (optim.global_batch, optim.steps) == (batch, steps)
    assert (optim.warmup_steps, optim.schedule) == (steps // 10, "cosine")


def test_a_batch_is_shared_evenly_by_the_workers():
    scale = ScaleConfig(num_workers=3)
    recipe = derive(60, scale=scale, optim=replace(SGD, global_batch=3))
    assert recipe.optim.global_batch == 3


def test_the_rate_is_a_share_of_the_models_own():
    assert derive(60).optim.lr == pytest.approx(0.00025)
    assert derive(500).optim.lr == pytest.approx(0.002)
    # AdamW's does not grow with the batch.
    for images in (60, 500):
        assert derive(images, start=ADAM).optim.lr == pytest.approx(0.00025)


def test_another_optimizer_needs_a_rate_of_its_own():
    with pytest.raises(RecipeError, match=r"adamw needs --optim\.lr-per-image"):
        derive(60, "optim.optimizer", optim=ADAM)
    optim = derive(60, "optim.optimizer", "optim.lr_per_image", optim=ADAM).optim
    assert optim.lr_per_image == ADAM.lr_per_image


def test_objects_are_pasted_unless_the_user_or_the_models_recipe_says_otherwise():
    assert derive(60).data.copy_paste == 0.5
    assert derive(60, "data.copy_paste").data.copy_paste == 0
    assert derive(60, data=DataConfig(copy_paste=0.2)).data.copy_paste == 0.2
    semantic = derive(60, model=DeepLabConfig())
    assert semantic.data.copy_paste == 0


def test_statistics_of_norms_are_frozen_unless_the_user_says_otherwise():
    model = MaskRCNNConfig(backbone=replace(MaskRCNNConfig().backbone, norm="batch"))
    assert derive(60, model=model).model.backbone.norm == "frozen"
    assert derive(60, "model.backbone.norm", model=model).model.backbone.norm == "batch"


def test_a_run_is_named_after_the_folder_of_its_data():
    assert name_run("s3://bucket/my photos/") == "my-photos"
    assert name_run("/") == "finetune"
