"""A sweep resumes only unchanged, and only on request."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.sweep_quickstart import SWEEP as DECLARED
from pipeline.errors import RecipeError
from pipeline.recipe_json import to_plain
from pipeline.tuning import sweep as sweeps


@pytest.fixture
def sweep(tmp_path):
    return replace(DECLARED, recipe=replace(DECLARED.recipe, storage=str(tmp_path)))


@pytest.fixture
def declared(sweep, tmp_path):
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / "sweep.json").write_text(json.dumps(to_plain(sweep)))
    return str(folder)


def test_a_sweep_that_was_never_started_cannot_resume(sweep, tmp_path):
    with pytest.raises(RecipeError, match=r"there is no sweep sweep in .* to resume"):
        sweeps._check_declaration(sweep, str(tmp_path / "sweep"), resume=True)
    assert not sweeps._check_declaration(sweep, str(tmp_path / "sweep"), resume=False)


def test_a_sweep_does_not_overwrite_another(sweep, declared):
    with pytest.raises(RecipeError, match="Resume it with: --resume"):
        sweeps._check_declaration(sweep, declared, resume=False)


def test_a_sweep_resumes_with_other_workers_but_not_with_other_trials(sweep, declared):
    recipe = sweep.recipe
    wider = replace(recipe, scale=replace(recipe.scale, num_workers=4))
    assert sweeps._check_declaration(
        replace(sweep, recipe=wider, parallel=3), declared, resume=True
    )
    longer = replace(recipe, optim=replace(recipe.optim, steps=200))
    with pytest.raises(RecipeError) as error:
        sweeps._check_declaration(replace(sweep, recipe=longer, trials=20), declared, resume=True)
    assert "  recipe.optim.steps: 180 -> 200\n  trials: 12 -> 20\n" in str(error.value)


def test_a_sweep_with_old_field_names_resumes(sweep, declared):
    path = Path(declared, "sweep.json")
    old = path.read_text().replace("images_per_microbatch", "images_per_pass")
    path.write_text(old.replace("box_convention", "geometry"))
    assert sweeps._check_declaration(sweep, declared, resume=True)


def test_a_problem_before_the_start_leaves_no_sweep_behind(sweep, tmp_path):
    """Otherwise the corrected command would be refused."""
    recipe = sweep.recipe
    nowhere = replace(sweep, recipe=replace(recipe, data=replace(recipe.data, root="/nowhere")))
    for _ in range(2):
        with pytest.raises(RecipeError, match="/nowhere/train"):
            sweeps.run_sweep(nowhere, resume=False)
    assert not (tmp_path / "sweep" / "sweep.json").exists()


def test_the_reason_of_a_failed_trial_is_one_line():
    traceback = """ray::ImplicitFunc.train() (pid=7, ip=192.0.2.2)
  File "pipeline/training/launch.py", line 181, in _train
    raise TrainingError(result.error)
pipeline.errors.TrainingError: step 1: loss_mask not finite. Images of the batch: 8, 16.
Look at these images first."""
    reason = "TrainingError: step 1: loss_mask not finite. Images of the batch: 8, 16."
    assert sweeps._extract_reason(RuntimeError(traceback)) == reason
    assert sweeps._extract_reason(RuntimeError("")) == "RuntimeError"
