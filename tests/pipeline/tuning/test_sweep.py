"""A sweep goes on only as it began, and never by accident."""

import json
from dataclasses import replace

import pytest

from jobs.sweep_quickstart import SWEEP as DECLARED
from pipeline.errors import RecipeError
from pipeline.recipe_json import to_plain
from pipeline.tuning import sweep as sweeps


@pytest.fixture
def sweep(tmp_path):
    return replace(DECLARED, recipe=replace(DECLARED.recipe, storage=str(tmp_path)))


@pytest.fixture
def begun(sweep, tmp_path):
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / "sweep.json").write_text(json.dumps(to_plain(sweep)))
    return str(folder)


def test_a_sweep_that_never_began_cannot_go_on(sweep, tmp_path):
    with pytest.raises(RecipeError, match=r"there is no sweep sweep in .* to go on with"):
        sweeps._has_begun(sweep, str(tmp_path / "sweep"), resume=True)
    assert not sweeps._has_begun(sweep, str(tmp_path / "sweep"), resume=False)


def test_a_sweep_is_not_started_over_an_old_one(sweep, begun):
    with pytest.raises(RecipeError, match="Go on with it: --resume"):
        sweeps._has_begun(sweep, begun, resume=False)


def test_a_sweep_goes_on_with_other_workers_but_not_with_other_trials(sweep, begun):
    recipe = sweep.recipe
    wider = replace(recipe, scale=replace(recipe.scale, num_workers=4))
    assert sweeps._has_begun(replace(sweep, recipe=wider, parallel=3), begun, resume=True)
    longer = replace(recipe, optim=replace(recipe.optim, steps=200))
    with pytest.raises(RecipeError) as told:
        sweeps._has_begun(replace(sweep, recipe=longer, trials=20), begun, resume=True)
    assert "  recipe.optim.steps: 180 -> 200\n  trials: 12 -> 20\n" in str(told.value)


def test_what_is_wrong_before_it_starts_leaves_no_sweep_behind(sweep, tmp_path):
    """Else the corrected command would be told that the sweep has begun."""
    recipe = sweep.recipe
    nowhere = replace(sweep, recipe=replace(recipe, data=replace(recipe.data, root="/nowhere")))
    for _ in range(2):
        with pytest.raises(RecipeError, match="/nowhere/train"):
            sweeps.run_sweep(nowhere, resume=False)
    assert not (tmp_path / "sweep" / "sweep.json").exists()


def test_a_failed_trial_says_why_in_a_line():
    traceback = """ray::ImplicitFunc.train() (pid=7, ip=192.0.2.2)
  File "pipeline/training/launch.py", line 181, in _train
    raise TrainingError(outcome.bad)
pipeline.errors.TrainingError: step 1: loss_mask not finite. Images of the batch: 8, 16.
Look at these images first."""
    told = "TrainingError: step 1: loss_mask not finite. Images of the batch: 8, 16."
    assert sweeps._reason(RuntimeError(traceback)) == told
    assert sweeps._reason(RuntimeError("")) == "RuntimeError"
