"""What a sweep may be, and which recipes its trials are."""

from dataclasses import replace

import pytest

from bsm.configs.semantic import DeepLabConfig
from jobs.sweep_coco_r50 import SWEEP
from pipeline.errors import RecipeError
from pipeline.recipe import differences
from pipeline.tuning.concurrency import room_for
from pipeline.tuning.space import Range, Sweep, applied, baselines, is_baseline, trial_recipe

KERNEL = "model.mask_head.targets.kernel_size"
LR = "optim.lr_per_image"


def test_the_first_trials_are_the_recipe_with_each_kernel_size():
    """Fig. 6 changes nothing else."""
    changed = [
        differences(SWEEP.recipe, applied(SWEEP.recipe, values)) for values in baselines(SWEEP)
    ]
    assert changed == [[f"{KERNEL}: 5 -> {size}"] if size != 5 else [] for size in (3, 5, 7, 9, 11)]
    assert all(is_baseline(SWEEP, values) for values in baselines(SWEEP))
    assert not is_baseline(SWEEP, baselines(SWEEP)[0] | {LR: 0.001})


def test_a_trial_differs_from_the_recipe_in_what_is_searched_and_has_its_own_name():
    values = baselines(SWEEP)[3] | {LR: 0.002, "model.mask_head.loss_weights.boundary": 3}
    recipe = trial_recipe(SWEEP.recipe, number=7, values=values)
    assert (recipe.name, recipe.storage) == ("sweep_coco_r50-007", "runs/sweep_coco_r50")
    assert recipe.optim.lr_per_image == 0.002
    assert recipe.model.mask_head.targets.kernel_size == 9
    assert recipe.model.mask_head.loss_weights.boundary == 3.0
    assert recipe.evaluation.every_checkpoint
    # Forty versions of trials would hide those that are for use.
    assert recipe.tracking.model_name == ""
    assert recipe.data == SWEEP.recipe.data


def test_a_label_map_sweep_finds_the_kernel_in_the_semantic_head():
    recipe = replace(SWEEP.recipe, model=DeepLabConfig())
    sweep = Sweep(recipe=recipe, ranges=(), metric="boundary_f_3px")
    assert [values["model.head.targets.kernel_size"] for values in baselines(sweep)] == [
        3,
        5,
        7,
        9,
        11,
    ]


def test_all_that_is_wrong_with_a_sweep_is_said_at_once_with_what_to_type():
    recipe = replace(
        SWEEP.recipe,
        scale=replace(SWEEP.recipe.scale, num_workers=0),
        checkpoint=replace(SWEEP.recipe.checkpoint, every_steps=22_500),
    )
    with pytest.raises(RecipeError) as told:
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
        "trials must be at least 1, got 0",
        "--scale.num-workers 1",
        "optim.lr_per_imag is no field of the recipe; perhaps you meant optim.lr_per_image",
        "the recipe's own optim.lr_per_image 0.00125 is not in 0.1 to 1",
        "checkpoint.every_steps (22500), which must be less than optim.steps (22500)",
    ):
        assert part in str(told.value)


def test_a_head_without_a_kernel_and_an_even_kernel_are_refused():
    head = replace(SWEEP.recipe.model.mask_head, kind="bmask")
    model = replace(SWEEP.recipe.model, mask_head=head)
    with pytest.raises(RecipeError, match="only squeeze heads have one"):
        replace(SWEEP, recipe=replace(SWEEP.recipe, model=model))
    with pytest.raises(RecipeError, match="kernel_size must be odd"):
        replace(SWEEP, kernel_sizes=(3, 4))
    with pytest.raises(RecipeError, match="needs 0 < low < high, got 0 to 1"):
        Range(field=LR, low=0, high=1)


def test_a_trial_needs_its_workers_and_a_cpu_for_the_data():
    """More trials than fit would wait for each other for ever."""
    scale = replace(SWEEP.recipe.scale, num_workers=2, use_gpu=False, cpus_per_worker=1.0)
    assert [room_for(scale, {"CPU": cpus}) for cpus in (2.0, 3.0, 5.9, 6.0)] == [0, 1, 1, 2]
    gpus = replace(scale, use_gpu=True)
    assert room_for(gpus, {"CPU": 100.0, "GPU": 5.0}) == 2
    assert room_for(gpus, {"CPU": 100.0}) == 0
