"""The winner, what mattered, the kernel-size curve: from trials whose answers are known."""

import csv
import io
import math
import random

import pytest
from PIL import Image

from jobs.sweep_quickstart import SWEEP
from pipeline.tuning.plot import picture
from pipeline.tuning.results import Trial, as_csv, as_table, importance, kernel_curve, winner
from pipeline.tuning.space import baselines

KERNEL, BOUNDARY, CONTRACTION, EXPANSION, LR = SWEEP.fields


def trial(number, values=None, *, kernel=5, state="finished", **more):
    values = values or baselines(SWEEP)[SWEEP.kernel_sizes.index(kernel)]
    return Trial(number=number, values=values, state=state, **more)


def drawn(number, *, reached):
    """A trial with random values, whose result is a function of them."""
    chance = random.Random(number)  # noqa: S311
    values = {KERNEL: chance.choice(SWEEP.kernel_sizes)}
    values |= {each.field: chance.uniform(each.low, each.high) for each in SWEEP.ranges}
    return trial(number, values, history={60: reached(values), 180: 2 * reached(values)})


def test_the_winner_is_the_best_of_those_that_finished():
    trials = [
        trial(1, history={60: 0.1, 180: 0.2}),
        trial(2, state="stopped", history={60: 0.9}),
        trial(3, state="failed", history={60: 0.95}, reason="ValueError: no"),
        trial(4, history={60: 0.0, 180: 0.3}),
        trial(5, history={60: 0.0, 180: 0.3}),
    ]
    assert winner(trials).number == 4
    assert winner(trials[1:3]) is None


def test_a_trial_without_a_number_never_wins():
    trials = [trial(1, history={180: -math.inf}), trial(2, history={180: 0.0})]
    assert winner(trials).number == 2


@pytest.mark.parametrize("field", [KERNEL, LR])
def test_the_only_value_that_matters_gets_all_the_importance(field):
    found = importance(SWEEP, [drawn(n, reached=lambda values: values[field]) for n in range(30)])
    assert next(iter(found.shares)) == field
    assert found.shares[field] > 0.9
    assert sum(found.shares.values()) == pytest.approx(1)
    assert (found.step, found.trials) == (180, 30)


def test_the_importance_does_not_hang_on_the_order_in_which_trials_ended():
    trials = [drawn(n, reached=lambda values: values[LR] * values[BOUNDARY]) for n in range(12)]
    assert importance(SWEEP, trials[::-1]) == importance(SWEEP, trials)


def test_trials_are_compared_at_the_last_step_that_all_of_them_reached():
    trials = [drawn(n, reached=lambda values: values[LR]) for n in range(12)]
    stopped = trial(12, state="stopped", history={60: 0.001})
    failed = trial(13, state="failed", history={})
    found = importance(SWEEP, [*trials, stopped, failed])
    assert (found.step, found.trials) == (60, 13)


def test_too_few_or_equal_trials_say_nothing():
    assert importance(SWEEP, []).shares == {}
    few = [drawn(n, reached=lambda values: values[LR]) for n in range(9)]
    assert importance(SWEEP, few).shares == {}
    equal = [drawn(n, reached=lambda _: 0.0) for n in range(20)]
    assert importance(SWEEP, equal).shares == {}


def test_the_curve_has_the_recipe_itself_and_the_spread_of_all_that_finished():
    other = baselines(SWEEP)[2] | {LR: 0.001}
    trials = [
        trial(1, kernel=7, history={60: 0.02, 180: 0.3}),
        trial(2, other, history={60: 0.01, 180: 0.1}),
        trial(3, other | {LR: 0.0005}, state="stopped", history={60: 0.05}),
        trial(4, kernel=3, state="failed", history={}),
    ]
    curve = {point.kernel_size: point for point in kernel_curve(SWEEP, trials)}
    assert list(curve) == [3, 5, 7, 9, 11]
    seven = curve[7]
    assert (seven.baseline, seven.finished, seven.early) == (0.3, (0.3, 0.1), (0.02, 0.01, 0.05))
    assert math.isnan(curve[3].baseline)
    assert (curve[3].finished, curve[3].early) == ((), ())


def test_the_table_and_the_file_name_every_trial_the_furthest_and_best_first():
    trials = [
        trial(1, history={60: 0.1, 180: 0.2}),
        trial(2, kernel=3, state="stopped", history={60: 0.9}),
        trial(3, kernel=9, state="failed", history={}, reason="TrainingError: loss, not finite"),
        trial(4, kernel=11, history={180: 0.25}, run_id="abc"),
    ]
    rows = list(csv.DictReader(io.StringIO(as_csv(SWEEP, trials))))
    assert [row["trial"] for row in rows] == ["4", "1", "2", "3"]
    assert rows[0] | {"boundary_ap": "0.25", KERNEL: "11", "run_id": "abc"} == rows[0]
    assert (rows[3]["boundary_ap"], rows[3]["reason"]) == ("", "TrainingError: loss, not finite")
    lines = as_table(SWEEP, trials).splitlines()
    assert lines[0].split()[:5] == ["trial", "state", "step", "boundary_ap", "kernel_size"]
    assert lines[4].split()[:4] == ["3", "failed", "0", "-"]


def test_the_picture_is_drawn_whatever_is_missing(tmp_path):
    trials = [drawn(n, reached=lambda values: values[LR]) for n in range(8)]
    for index, shown in enumerate((trials, trials[:1], [])):
        path = tmp_path / f"{index}.png"
        path.write_bytes(picture(SWEEP, kernel_curve(SWEEP, shown), importance(SWEEP, shown)))
        with Image.open(path) as image:
            assert image.size[0] > 1000
