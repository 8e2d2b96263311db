from dataclasses import replace

import pytest

from pipeline.recipe import CheckpointConfig, OptimConfig, Recipe
from pipeline.training.schedule import (
    describe_short_run,
    explain_nothing_found,
    find_misfits,
    follow_steps,
)

DECLARED = Recipe(
    name="run",
    optim=OptimConfig(steps=90_000, warmup_steps=1000, decay_at=(60_000, 80_000)),
    checkpoint=CheckpointConfig(every_steps=20),
)


def change(**values):
    return replace(DECLARED, optim=replace(DECLARED.optim, **values))


def test_what_nobody_set_follows_the_number_of_steps():
    fitted, notices = follow_steps(DECLARED, change(steps=9000), given={"optim.steps"})
    assert (fitted.optim.warmup_steps, fitted.optim.decay_at) == (100, (6000, 8000))
    assert len(notices) == 1
    assert "--optim.warmup-steps 100" in notices[0]
    assert "--optim.decay-at 6000 8000" in notices[0]
    assert list(find_misfits(fitted)) == []


def test_what_the_user_set_stays():
    given = {"optim.steps", "optim.warmup_steps"}
    fitted, notices = follow_steps(DECLARED, change(steps=900, warmup_steps=1000), given=given)
    assert (fitted.optim.warmup_steps, fitted.optim.decay_at) == (1000, (600, 800))
    assert "warmup" not in notices[0]


def test_a_recipe_with_its_own_steps_stays_as_it_is():
    assert follow_steps(DECLARED, change(lr_per_image=1.0), given=set()) == (
        change(lr_per_image=1.0),
        [],
    )


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        (change(warmup_steps=90_000), "the learning rate is never reached"),
        (change(decay_at=(60_000, 90_000)), "to fall at step 90000"),
        (replace(DECLARED, checkpoint=CheckpointConfig(every_steps=90_000)), "at step 0"),
    ],
)
def test_a_schedule_that_cannot_work_is_told_with_what_to_type(recipe, text):
    (misfit,) = find_misfits(recipe)
    assert text in misfit


def test_a_step_of_more_images_than_there_are_is_told():
    assert "try --optim.global-batch 10" in describe_short_run(DECLARED, train_images=10)
    assert describe_short_run(DECLARED, train_images=16) == ""


def test_a_run_of_less_than_an_epoch_is_told():
    text = describe_short_run(change(steps=6), train_images=1000)
    assert text.startswith("6 steps of 16 images see 96 of 1000, less than an epoch")
    assert text.endswith("--optim.steps 63")
    assert describe_short_run(change(steps=63), train_images=1000) == ""


def test_reasons_for_a_model_that_finds_nothing_start_with_its_schedule():
    reasons = explain_nothing_found(change(steps=60, decay_at=()), train_images=1000)
    assert "never reached" in reasons[0]
    assert any("1.0 epochs" in reason for reason in reasons)
    # A run without a checkpoint trains the same weights.
    few = replace(DECLARED, checkpoint=CheckpointConfig(every_steps=90_000))
    assert not any("checkpoint" in reason for reason in explain_nothing_found(few, train_images=1))
