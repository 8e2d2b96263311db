"""Winner, importance and kernel-size curve of trials with known results."""

import csv
import io
import math
import random

import pytest
from PIL import Image

from jobs.sweep_quickstart import SWEEP
from pipeline.tuning.plot import plot_sweep
from pipeline.tuning.results import (
    TrialResult,
    build_kernel_curve,
    estimate_importance,
    find_winner,
    format_trials_csv,
    format_trials_table,
)
from pipeline.tuning.space import baselines

KERNEL, BOUNDARY, CONTRACTION, EXPANSION, LR = SWEEP.fields


def make_trial(number, values=None, *, kernel=5, state="finished", **more):
    values = values or baselines(SWEEP)[SWEEP.kernel_sizes.index(kernel)]
    return TrialResult(number=number, values=values, state=state, **more)


def draw_trial(number, *, metric):
    """Make a trial with random values, whose metric is a function of them."""
    rng = random.Random(number)  # noqa: S311
    values = {KERNEL: rng.choice(SWEEP.kernel_sizes)}
    values |= {each.field: rng.uniform(each.low, each.high) for each in SWEEP.ranges}
    return make_trial(number, values, history={60: metric(values), 180: 2 * metric(values)})


def test_the_winner_is_the_best_finished_trial():
    trials = [
        make_trial(1, history={60: 0.1, 180: 0.2}),
        make_trial(2, state="stopped", history={60: 0.9}),
        make_trial(3, state="failed", history={60: 0.95}, reason="ValueError: no"),
        make_trial(4, history={60: 0.0, 180: 0.3}),
        make_trial(5, history={60: 0.0, 180: 0.3}),
    ]
    assert find_winner(trials).number == 4
    assert find_winner(trials[1:3]) is None


def test_a_trial_without_a_metric_never_wins():
    trials = [make_trial(1, history={180: -math.inf}), make_trial(2, history={180: 0.0})]
    assert find_winner(trials).number == 2


@pytest.mark.parametrize("field", [KERNEL, LR])
def test_the_only_relevant_value_gets_all_the_importance(field):
    found = estimate_importance(
        SWEEP, [draw_trial(n, metric=lambda values: values[field]) for n in range(30)]
    )
    assert next(iter(found.shares)) == field
    assert found.shares[field] > 0.9
    assert sum(found.shares.values()) == pytest.approx(1)
    assert (found.step, found.trials) == (180, 30)


def test_the_importance_does_not_depend_on_the_order_of_trials():
    trials = [draw_trial(n, metric=lambda values: values[LR] * values[BOUNDARY]) for n in range(12)]
    assert estimate_importance(SWEEP, trials[::-1]) == estimate_importance(SWEEP, trials)


def test_trials_are_compared_at_their_last_common_step():
    trials = [draw_trial(n, metric=lambda values: values[LR]) for n in range(12)]
    stopped = make_trial(12, state="stopped", history={60: 0.001})
    failed = make_trial(13, state="failed", history={})
    found = estimate_importance(SWEEP, [*trials, stopped, failed])
    assert (found.step, found.trials) == (60, 13)


def test_too_few_or_equal_trials_have_no_importance():
    assert estimate_importance(SWEEP, []).shares == {}
    few = [draw_trial(n, metric=lambda values: values[LR]) for n in range(9)]
    assert estimate_importance(SWEEP, few).shares == {}
    equal = [draw_trial(n, metric=lambda _: 0.0) for n in range(20)]
    assert estimate_importance(SWEEP, equal).shares == {}


def test_the_curve_has_the_baseline_and_all_finished_trials():
    other = baselines(SWEEP)[2] | {LR: 0.001}
    trials = [
        make_trial(1, kernel=7, history={60: 0.02, 180: 0.3}),
        make_trial(2, other, history={60: 0.01, 180: 0.1}),
        make_trial(3, other | {LR: 0.0005}, state="stopped", history={60: 0.05}),
        make_trial(4, kernel=3, state="failed", history={}),
    ]
    curve = {point.kernel_size: point for point in build_kernel_curve(SWEEP, trials)}
    assert list(curve) == [3, 5, 7, 9, 11]
    seven = curve[7]
    assert (seven.baseline, seven.finished, seven.early) == (0.3, (0.3, 0.1), (0.02, 0.01, 0.05))
    assert math.isnan(curve[3].baseline)
    assert (curve[3].finished, curve[3].early) == ((), ())


def test_table_and_csv_list_every_trial_best_first():
    trials = [
        make_trial(1, history={60: 0.1, 180: 0.2}),
        make_trial(2, kernel=3, state="stopped", history={60: 0.9}),
        make_trial(
            3, kernel=9, state="failed", history={}, reason="TrainingError: loss, not finite"
        ),
        make_trial(4, kernel=11, history={180: 0.25}, run_id="abc"),
    ]
    rows = list(csv.DictReader(io.StringIO(format_trials_csv(SWEEP, trials))))
    assert [row["trial"] for row in rows] == ["4", "1", "2", "3"]
    assert rows[0] | {"boundary_ap": "0.25", KERNEL: "11", "run_id": "abc"} == rows[0]
    assert (rows[3]["boundary_ap"], rows[3]["reason"]) == ("", "TrainingError: loss, not finite")
    lines = format_trials_table(SWEEP, trials).splitlines()
    assert lines[0].split()[:5] == ["trial", "state", "step", "boundary_ap", "kernel_size"]
    assert lines[4].split()[:4] == ["3", "failed", "0", "-"]


def test_the_plot_works_with_missing_trials(tmp_path):
    trials = [draw_trial(n, metric=lambda values: values[LR]) for n in range(8)]
    for index, shown in enumerate((trials, trials[:1], [])):
        path = tmp_path / f"{index}.png"
        path.write_bytes(
            plot_sweep(SWEEP, build_kernel_curve(SWEEP, shown), estimate_importance(SWEEP, shown))
        )
        with Image.open(path) as image:
            assert image.size[0] > 1000
