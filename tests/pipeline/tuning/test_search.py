"""The searcher proposes baselines first, and the scheduler stops trials that fall behind."""

from types import SimpleNamespace

import pytest
from ray.tune.schedulers import TrialScheduler

from jobs.sweep_quickstart import SWEEP
from pipeline.tuning.search import SweepScheduler, build_distributions, build_searcher
from pipeline.tuning.space import baselines, is_baseline

KERNEL, *_, LR = SWEEP.fields


def propose(count):
    """Ask for values and report a synthetic metric, as Tune does."""
    searcher, seen = build_searcher(SWEEP), []
    for number in range(count):
        values = searcher.suggest(str(number))
        seen.append(values)
        metric = 1 - abs(values[KERNEL] - 9) / 10
        searcher.on_trial_complete(str(number), {SWEEP.metric: metric, "training_iteration": 1})
    return seen


def test_baselines_come_first_and_the_search_is_reproducible():
    seen = propose(30)
    assert seen[:5] == baselines(SWEEP)
    assert not any(is_baseline(SWEEP, values) for values in seen[5:])
    assert seen == propose(30)
    for values in seen:
        assert values[KERNEL] in SWEEP.kernel_sizes
        for each in SWEEP.ranges:
            assert each.low <= values[each.field] <= each.high


def test_the_search_prefers_values_with_good_results():
    late = [values[KERNEL] for values in propose(40)[20:]]
    assert late.count(9) > len(late) / 2


def test_evenly_spaced_kernel_sizes_keep_their_order():
    kernel = build_distributions(SWEEP)[KERNEL]
    assert (kernel.low, kernel.high, kernel.step) == (3, 11, 2)


@pytest.fixture
def scheduler():
    scheduler = SweepScheduler(SWEEP)
    scheduler.set_search_properties(None, None)
    return scheduler


def report(scheduler, name, values, *, step, value):
    trial = SimpleNamespace(trial_id=name, config=values)
    if step == 60:
        scheduler.on_trial_add(None, trial)
    return scheduler.on_trial_result(None, trial, {"step": step, SWEEP.metric: value})


def test_a_trial_that_falls_behind_is_stopped_but_never_a_baseline(scheduler):
    own = baselines(SWEEP)
    other = own[0] | {LR: SWEEP.ranges[-1].low}
    assert report(scheduler, "a", own[0], step=60, value=0.2) == TrialScheduler.CONTINUE
    assert report(scheduler, "b", own[1], step=60, value=0.1) == TrialScheduler.CONTINUE
    assert report(scheduler, "c", other, step=60, value=0.05) == TrialScheduler.STOP
    assert report(scheduler, "d", other, step=60, value=0.3) == TrialScheduler.CONTINUE
    assert report(scheduler, "b", own[1], step=120, value=0.1) == TrialScheduler.CONTINUE
    assert report(scheduler, "d", other, step=120, value=0.05) == TrialScheduler.STOP
