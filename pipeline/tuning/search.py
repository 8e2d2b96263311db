"""Which values a trial gets, and which trials are stopped: Optuna's TPE, and successive halving."""

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
"""Drawn at random after the baselines, which all have the same weights: TPE needs some that differ
before it has anything to say."""

KEPT = 2
"""At each measured step about one of so many trials goes on."""


def distributions(sweep: Sweep) -> dict[str, BaseDistribution]:
    """Give what Optuna draws from, by the field's name."""
    ranges = {each.field: FloatDistribution(each.low, each.high, log=True) for each in sweep.ranges}
    return {kernel_field(sweep.recipe): _kernels(sweep.kernel_sizes), **ranges}


def _kernels(sizes: tuple[int, ...]) -> BaseDistribution:
    """Keep the order of sizes where they have one distance: 5 is between 3 and 7."""
    ordered = sorted(set(sizes))
    steps = {after - before for before, after in itertools.pairwise(ordered)}
    if len(steps) == 1:
        return IntDistribution(ordered[0], ordered[-1], step=steps.pop())
    return CategoricalDistribution(ordered)


def search(sweep: Sweep) -> OptunaSearch:
    """Propose the baselines, then what TPE expects most of; the recipe's seed decides the draws."""
    first = baselines(sweep)
    return OptunaSearch(
        space=distributions(sweep),
        metric=sweep.metric,
        mode="max",
        points_to_evaluate=first,
        sampler=optuna.samplers.TPESampler(
            seed=sweep.recipe.seed,
            multivariate=True,
            n_startup_trials=len(first) + _RANDOM_TRIALS,
            # Trials that run side by side do not all try the same place.
            constant_liar=True,
        ),
    )


class Halving(ASHAScheduler):
    """ASHA in steps of the optimizer, which lets the baselines run to their end.

    They are compared with like all others, so a trial goes on only where it keeps up with them.
    """

    def __init__(self, sweep: Sweep) -> None:
        super().__init__(
            time_attr="step",
            metric=sweep.metric,
            mode="max",
            max_t=sweep.recipe.optim.steps,
            grace_period=sweep.recipe.checkpoint.every_steps,
            reduction_factor=KEPT,
        )
        self._sweep = sweep

    def on_trial_result(
        self,
        tune_controller: Any,  # noqa: ANN401  Ray's signature
        trial: Any,  # noqa: ANN401
        result: dict[str, Any],
    ) -> str:
        """Decide after each measurement."""
        decision: str = super().on_trial_result(tune_controller, trial, result)
        if is_baseline(self._sweep, trial.config):
            return TrialScheduler.CONTINUE
        return decision
