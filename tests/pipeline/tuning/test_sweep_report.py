"""The report of a sweep, from trials with known results and from the folder of a sweep."""

import json
import re
from pathlib import Path

import pytest

from jobs.sweep_quickstart import SWEEP
from pipeline.errors import RecipeError
from pipeline.evaluation.checkpoint_metrics import save_metrics
from pipeline.recipe_json import to_plain
from pipeline.tuning.results import format_trials_csv
from pipeline.tuning.space import trial_name
from pipeline.tuning.sweep_report import is_sweep, read_sweep, write_sweep_report
from tests.pipeline.tuning.test_results import LR, draw_trial, make_trial

STOPPED = make_trial(12, state="stopped", history={60: 0.001}, run_id="abc")
FAILED = make_trial(13, state="failed", history={}, reason="ValueError: <b>no</b>")
TRIALS = [draw_trial(n, metric=lambda values: values[LR]) for n in range(12)] + [STOPPED, FAILED]


def write_folder(folder: Path) -> str:
    """Write what a finished sweep leaves in its folder."""
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps(to_plain(SWEEP)))
    (folder / "trials.csv").write_text(format_trials_csv(SWEEP, TRIALS))
    for trial in TRIALS:
        for step, value in trial.history.items():
            run = folder / trial_name(folder.name, trial.number)
            save_metrics(str(run), {SWEEP.metric: value}, step=step)
    return str(folder)


def test_a_report_has_the_winner_the_curve_the_importance_and_every_trial(tmp_path):
    page = Path(write_sweep_report(SWEEP, TRIALS, folder=str(tmp_path))).read_text()
    best = max(TRIALS[:12], key=lambda each: each.value)
    assert f"Trial {best.number}, whose own report is in" in page
    for chart in (
        "by kernel size after the last step",
        "by kernel size at step 60",
        "Parallel coordinates of all trials",
        "Importance of the searched values",
    ):
        assert re.search(rf'aria-label="[^"]*{chart}"', page)
    assert "ValueError: &lt;b&gt;no&lt;/b&gt;" in page
    rows = re.findall(r"<tr><td>\d+</td><td>(finished|stopped|failed)", page)
    assert sorted(rows) == ["failed", *["finished"] * 12, "stopped"]


def test_the_folder_of_a_sweep_gives_the_same_report(tmp_path):
    folder = write_folder(tmp_path / SWEEP.recipe.name)
    assert is_sweep(folder)
    direct = write_sweep_report(SWEEP, TRIALS, folder=folder, out=str(tmp_path / "direct.html"))
    sweep, trials = read_sweep(folder)
    assert sweep == SWEEP
    assert trials == TRIALS
    again = write_sweep_report(sweep, trials, folder=folder)
    assert Path(again).read_bytes() == Path(direct).read_bytes()


def test_what_a_sweep_does_not_have_is_said(tmp_path):
    page = Path(write_sweep_report(SWEEP, [FAILED], folder=str(tmp_path))).read_text()
    assert "No trial finished" in page
    assert "The importance cannot be estimated" in page
    assert "No trial was evaluated" in page
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"the sweep has not ended\. Resume it"):
        read_sweep(str(tmp_path))
