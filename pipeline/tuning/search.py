"""Propose the values of trials with Optuna's TPE, and stop trials by successive halving."""

import itertools
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from pipeline.tuning.space import Sweep, baselines, is_baseline, kernel_field

_RANDOM_TRIALS = 3
"""Random trials after the baselines: the baselines differ in the kernel size only, and TPE needs
trials that differ in all values."""

_REDUCTION_FACTOR = 2
"""At each evaluated step about one of this many trials continues."""


def build_distributions(sweep: Sweep) -> dict[str, BaseDistribution]:
    """Build Optuna's distributions, by field name."""
    ranges = {each.field: FloatDistribution(each.low, each.high, log=True) for each in sweep.ranges}
    return {kernel_field(sweep.recipe): _kernel_distribution(sweep.kernel_sizes), **ranges}


def _kernel_distribution(sizes: tuple[int, ...]) -> BaseDistribution:
    """Keep the order of evenly spaced sizes, so that TPE knows that 5 is between 3 and 7."""
    ordered = sorted(set(sizes))
    steps = {after - before for before, after in itertools.pairwise(ordered)}
    if len(steps) == 1:
        return IntDistribution(ordered[0], ordered[-1], step=steps.pop())
    return CategoricalDistribution(ordered)


def build_searcher(sweep: Sweep) -> OptunaSearch:
    """Build a searcher that proposes the baselines first, then samples with TPE."""
    first = baselines(sweep)
    return OptunaSearch(
        space=build_distributions(sweep),
        metric=sweep.metric,
        mode="max",
        points_to_evaluate=first,
        sampler=optuna.samplers.TPESampler(
            seed=sweep.recipe.seed,
            multivariate=True,
            n_startup_trials=len(first) + _RANDOM_TRIALS,
            # Keeps concurrent trials from sampling the same values.
            constant_liar=True,
        ),
    )


class SweepScheduler(ASHAScheduler):
    """ASHA over optimizer steps that never stops a baseline.

    Baselines still count in the comparison, so another trial must keep up with them to continue.
    """

    def __init__(self, sweep: Sweep) -> None:
        super().__init__(
            time_attr="step",
            metric=sweep.metric,
            mode="max",
            max_t=sweep.recipe.optim.steps,
            grace_period=sweep.recipe.checkpoint.every_steps,
            reduction_factor=_REDUCTION_FACTOR,
        )
        self._sweep = sweep

    def on_trial_result(
        self,
        tune_controller: Any,  # noqa: ANN401  Ray's signature
        trial: Any,  # noqa: ANN401
        result: dict[str, Any],
    ) -> str:
        """Decide whether a trial continues after an evaluation."""
        decision: str = super().on_trial_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE if is_baseline(self._sweep, trial.config) else decision
