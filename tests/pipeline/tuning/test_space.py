"""Rules of a sweep, and the recipes of its trials."""

from dataclasses import replace

import pytest

from bsm.configs.semantic import DeepLabConfig
from jobs.sweep_coco_r50 import SWEEP
from pipeline.errors import RecipeError
from pipeline.recipe import differences
from pipeline.tuning.space import Range, Sweep, apply_values, baselines, is_baseline, trial_recipe

KERNEL = "model.mask_head.targets.kernel_size"
LR = "optim.lr_per_image"


def test_the_first_trials_are_the_recipe_with_each_kernel_size():
    changed = [
        differences(SWEEP.recipe, apply_values(SWEEP.recipe, values)) for values in baselines(SWEEP)
    ]
    assert changed == [[f"{KERNEL}: 5 -> {size}"] if size != 5 else [] for size in (3, 5, 7, 9, 11)]
    assert all(is_baseline(SWEEP, values) for values in baselines(SWEEP))
    assert not is_baseline(SWEEP, baselines(SWEEP)[0] | {LR: 0.001})


def test_a_trial_changes_the_searched_values_and_the_name():
    values = baselines(SWEEP)[3] | {LR: 0.002, "model.mask_head.loss_weights.boundary": 3}
    recipe = trial_recipe(SWEEP.recipe, number=7, values=values)
    assert (recipe.name, recipe.storage) == ("sweep_coco_r50-007", "runs/sweep_coco_r50")
    assert recipe.optim.lr_per_image == 0.002
    assert recipe.model.mask_head.targets.kernel_size == 9
    assert recipe.model.mask_head.loss_weights.boundary == 3.0
    assert recipe.evaluation.every_checkpoint
    # Forty versions of trials would hide the useful ones.
    assert recipe.tracking.model_name == ""
    assert recipe.data == SWEEP.recipe.data


def test_a_semantic_sweep_finds_the_kernel_in_its_head():
    recipe = replace(SWEEP.recipe, model=DeepLabConfig())
    sweep = Sweep(recipe=recipe, ranges=(), metric="boundary_f_3px")
    assert [values["model.head.targets.kernel_size"] for values in baselines(sweep)] == [
        3,
        5,
        7,
        9,
        11,
    ]


def test_all_problems_of_a_sweep_are_reported_at_once():
    recipe = replace(
        SWEEP.recipe,
        scale=replace(SWEEP.recipe.scale, num_workers=0),
        checkpoint=replace(SWEEP.recipe.checkpoint, every_steps=22_500, best_metric="boundary_ap"),
    )
    with pytest.raises(RecipeError) as error:
        replace(
            SWEEP,
            recipe=recipe,
            trials=0,
            ranges=(
                Range(field="optim.lr_per_imag", low=0.1, high=1),
                Range(field=LR, low=0.1, high=1),
            ),
        )
    for part in (
        "trials: must be at least 1, got 0",
        "--scale.num-workers 1",
        "unknown field optim.lr_per_imag; perhaps you meant optim.lr_per_image",
        "optim.lr_per_image: must be in the searched range 0.1 to 1, got 0.00125",
        "recipe.checkpoint.best_metric: trials are compared by their last step; leave it out",
        "every 22500 steps, which must be less than optim.steps 22500",
    ):
        assert part in str(error.value)


def test_a_head_without_a_kernel_and_an_even_kernel_are_refused():
    head = replace(SWEEP.recipe.model.mask_head, kind="bmask")
    model = replace(SWEEP.recipe.model, mask_head=head)
    with pytest.raises(RecipeError, match="only squeeze heads have one"):
        replace(SWEEP, recipe=replace(SWEEP.recipe, model=model))
    with pytest.raises(RecipeError, match=r"kernel_sizes\[1\]: must be odd, got 4"):
        replace(SWEEP, kernel_sizes=(3, 4))
    with pytest.raises(RecipeError, match="low: must be above 0, got 0"):
        Range(field=LR, low=0, high=1)
