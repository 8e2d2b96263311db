"""The results of a sweep: its trials, the winner, the kernel-size curve, and importances."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import optuna

from pipeline.text import format_score, format_table
from pipeline.tuning.search import build_distributions
from pipeline.tuning.space import Sweep, Values, is_baseline, kernel_field, short_name

State = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialResult:
    """The result of one trial."""

    number: int
    values: Values
    state: State
    """"stopped": the scheduler ended it early."""
    history: Mapping[int, float]
    """The metric by step."""
    run_id: str = ""
    """MLflow's id; "" if the trial failed before it was tracked."""
    reason: str = ""
    """Error message of a failed trial."""

    @property
    def step(self) -> int:
        """The last evaluated step, or 0."""
        return max(self.history, default=0)

    @property
    def value(self) -> float:
        """The metric at the last evaluated step, or NaN."""
        return self.history.get(self.step, math.nan)


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelPoint:
    """The metric of all trials with one kernel size."""

    kernel_size: int
    baseline: float
    """Of the recipe's own values, at the last step; NaN if that trial failed."""
    finished: tuple[float, ...] = ()
    """Of the finished trials, ordered by number."""
    early: tuple[float, ...] = ()
    """Of all trials, at the last step that all of them reached."""


def find_winner(trials: Iterable[TrialResult]) -> TrialResult | None:
    """Return the finished trial with the best metric, the earlier one if equal, or None."""
    finished = [trial for trial in trials if trial.state == "finished"]
    return max(finished, key=lambda trial: (trial.value, -trial.number), default=None)


def build_kernel_curve(sweep: Sweep, trials: Sequence[TrialResult]) -> list[KernelPoint]:
    """Group the trials by kernel size (Fig. 6)."""
    name, step = kernel_field(sweep.recipe), find_common_step(trials)
    points = []
    for size in sorted(sweep.kernel_sizes):
        of_size = [trial for trial in trials if trial.values[name] == size]
        finished = [trial for trial in of_size if trial.state == "finished"]
        own = [trial.value for trial in finished if is_baseline(sweep, trial.values)]
        points.append(
            KernelPoint(
                kernel_size=size,
                baseline=own[0] if own else math.nan,
                finished=tuple(trial.value for trial in finished),
                early=tuple(trial.history[step] for trial in of_size if step in trial.history),
            )
        )
    return points


def find_common_step(trials: Iterable[TrialResult]) -> int:
    """Return the last step at which all trials that did not fail were evaluated, or 0."""
    reached = [set(trial.history) for trial in trials if trial.state != "failed" and trial.history]
    return max(set.intersection(*reached), default=0) if reached else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Importance:
    """The share of the variance between trials that each field explains."""

    shares: Mapping[str, float]
    """By field name, largest first, with sum 1; empty if there are too few different trials."""
    step: int
    """The step at which trials are compared: the last one that all of them reached."""
    trials: int
    """Number of compared trials."""


def estimate_importance(sweep: Sweep, trials: Sequence[TrialResult]) -> Importance:
    """Estimate the importance of each searched value (fANOVA).

    Stopped trials count too: all trials but the failed ones are compared at the last step that all
    of them reached.
    """
    step, space = find_common_step(trials), build_distributions(sweep)
    study = optuna.create_study(direction="maximize")
    # fANOVA's random forest depends on the order of the trials.
    for trial in sorted(trials, key=lambda trial: trial.number):
        if math.isfinite(trial.history.get(step, math.nan)):
            study.add_trial(
                optuna.trial.create_trial(
                    params=dict(trial.values), distributions=space, value=trial.history[step]
                )
            )
    values = [trial.values[0] for trial in study.trials]
    # With few or equal trials the shares would be arbitrary.
    if len(values) < 2 * len(space) or min(values) == max(values):
        return Importance(shares={}, step=step, trials=len(values))
    shares = optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=sweep.recipe.seed)
    )
    shares = {name: float(share) for name, share in shares.items()}
    return Importance(shares=shares, step=step, trials=len(values))


def format_trials_csv(sweep: Sweep, trials: Sequence[TrialResult]) -> str:
    """Format the trials as CSV, best first."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["trial", "state", "step", sweep.metric, *sweep.fields, "run_id", "reason"])
    for trial in sort_best_first(trials):
        value = "" if math.isnan(trial.value) else trial.value
        searched = [trial.values[name] for name in sweep.fields]
        table.writerow(
            [trial.number, trial.state, trial.step, value, *searched, trial.run_id, trial.reason]
        )
    return text.getvalue()


def format_trials_table(sweep: Sweep, trials: Sequence[TrialResult]) -> str:
    """Format the trials as a table for the terminal, best first."""
    rows = [["trial", "state", "step", sweep.metric, *map(short_name, sweep.fields)]]
    for trial in sort_best_first(trials):
        searched = [f"{trial.values[name]:.3g}" for name in sweep.fields]
        score = format_score(trial.value)
        rows.append([str(trial.number), trial.state, str(trial.step), score, *searched])
    return "\n".join(format_table(rows, align=">"))


def sort_best_first(trials: Sequence[TrialResult]) -> list[TrialResult]:
    """Sort trials by their last step, then by their metric."""

    def key(trial: TrialResult) -> tuple[int, float, int]:
        value = -math.inf if math.isnan(trial.value) else trial.value
        return (-trial.step, -value, trial.number)

    return sorted(trials, key=key)
