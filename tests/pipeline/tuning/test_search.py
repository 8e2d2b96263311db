"""Which values are proposed, in which order, and who is stopped."""

from types import SimpleNamespace

import pytest
from ray.tune.schedulers import TrialScheduler

from jobs.sweep_quickstart import SWEEP
from pipeline.tuning.search import Halving, distributions, search
from pipeline.tuning.space import baselines, is_baseline

KERNEL, *_, LR = SWEEP.fields


def proposals(count):
    """Ask for values and answer with a made-up result, as Tune does."""
    searcher, seen = search(SWEEP), []
    for number in range(count):
        values = searcher.suggest(str(number))
        seen.append(values)
        reached = 1 - abs(values[KERNEL] - 9) / 10
        searcher.on_trial_complete(str(number), {SWEEP.metric: reached, "training_iteration": 1})
    return seen


def test_baselines_come_first_then_the_space_is_searched_the_same_way_each_time():
    seen = proposals(30)
    assert seen[:5] == baselines(SWEEP)
    assert not any(is_baseline(SWEEP, values) for values in seen[5:])
    assert seen == proposals(30)
    for values in seen:
        assert values[KERNEL] in SWEEP.kernel_sizes
        for each in SWEEP.ranges:
            assert each.low <= values[each.field] <= each.high


def test_the_search_goes_where_results_are_good():
    late = [values[KERNEL] for values in proposals(40)[20:]]
    assert late.count(9) > len(late) / 2


def test_kernel_sizes_keep_their_order_where_they_have_one_distance():
    kernel = distributions(SWEEP)[KERNEL]
    assert (kernel.low, kernel.high, kernel.step) == (3, 11, 2)


@pytest.fixture
def halving():
    made = Halving(SWEEP)
    made.set_search_properties(None, None)
    return made


def at(halving, name, values, *, step, value):
    trial = SimpleNamespace(trial_id=name, config=values)
    if step == 60:
        halving.on_trial_add(None, trial)
    return halving.on_trial_result(None, trial, {"step": step, SWEEP.metric: value})


def test_a_trial_that_does_not_keep_up_is_stopped_and_a_baseline_never(halving):
    own = baselines(SWEEP)
    other = own[0] | {LR: SWEEP.ranges[-1].low}
    assert at(halving, "a", own[0], step=60, value=0.2) == TrialScheduler.CONTINUE
    assert at(halving, "b", own[1], step=60, value=0.1) == TrialScheduler.CONTINUE
    assert at(halving, "c", other, step=60, value=0.05) == TrialScheduler.STOP
    assert at(halving, "d", other, step=60, value=0.3) == TrialScheduler.CONTINUE
    assert at(halving, "b", own[1], step=120, value=0.1) == TrialScheduler.CONTINUE
    assert at(halving, "d", other, step=120, value=0.05) == TrialScheduler.STOP
