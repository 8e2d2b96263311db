"""What came of a sweep: its trials, the winner, what mattered, and the curve of kernel sizes."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import optuna

from pipeline.tuning.search import distributions
from pipeline.tuning.space import Sweep, Values, is_baseline, kernel_field, short

State = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One trial, as it ended."""

    number: int
    values: Values
    state: State
    """Stopped: what was measured did not keep up with the others."""
    history: Mapping[int, float]
    """What was measured, by the step."""
    run_id: str = ""
    """MLflow's id; empty where the trial failed before it was tracked."""
    reason: str = ""
    """Why it failed."""

    @property
    def step(self) -> int:
        """The last step that was measured; 0 where none was."""
        return max(self.history, default=0)

    @property
    def value(self) -> float:
        """What was measured last; NaN where nothing was."""
        return self.history.get(self.step, math.nan)


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelPoint:
    """What trials with one kernel size reached."""

    kernel_size: int
    baseline: float
    """The recipe's own values, at the last step; NaN where that trial failed."""
    finished: tuple[float, ...] = ()
    """Of all finished trials, in the order of their numbers."""
    early: tuple[float, ...] = ()
    """Of all trials, those that were stopped too, at the last step that all of them reached."""


def winner(trials: Iterable[Trial]) -> Trial | None:
    """Give the best finished trial, the earlier one of equals; None where none finished."""
    finished = [trial for trial in trials if trial.state == "finished"]
    return max(finished, key=lambda trial: (trial.value, -trial.number), default=None)


def kernel_curve(sweep: Sweep, trials: Sequence[Trial]) -> list[KernelPoint]:
    """Sort what was reached by kernel size (Fig. 6)."""
    name, step = kernel_field(sweep.recipe), common_step(trials)
    points = []
    for size in sorted(sweep.kernel_sizes):
        here = [trial for trial in trials if trial.values[name] == size]
        finished = [trial for trial in here if trial.state == "finished"]
        own = [trial.value for trial in finished if is_baseline(sweep, trial.values)]
        points.append(
            KernelPoint(
                kernel_size=size,
                baseline=own[0] if own else math.nan,
                finished=tuple(trial.value for trial in finished),
                early=tuple(trial.history[step] for trial in here if step in trial.history),
            )
        )
    return points


def common_step(trials: Iterable[Trial]) -> int:
    """Give the last step at which all trials were measured, but for those that failed; else 0."""
    reached = [set(trial.history) for trial in trials if trial.state != "failed" and trial.history]
    return max(set.intersection(*reached), default=0) if reached else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Importance:
    """How much of the differences between trials each field explains."""

    shares: Mapping[str, float]
    """By the field's name, the largest first; they add up to 1. Empty where trials do not say."""
    step: int
    """At which trials are compared: the last one that all of them reached."""
    trials: int
    """How many are compared."""


def importance(sweep: Sweep, trials: Sequence[Trial]) -> Importance:
    """Estimate how much each searched value mattered (fANOVA).

    Stopped trials count too: all are compared at the same step, the last that all of them reached,
    those that failed left out.
    """
    step, space = common_step(trials), distributions(sweep)
    study = optuna.create_study(direction="maximize")
    # Which trials a tree is drawn from hangs on their order.
    for trial in sorted(trials, key=lambda trial: trial.number):
        if math.isfinite(trial.history.get(step, math.nan)):
            study.add_trial(
                optuna.trial.create_trial(
                    params=dict(trial.values), distributions=space, value=trial.history[step]
                )
            )
    reached = [each.values[0] for each in study.trials]
    # Of a few trials, or of equal ones, any share could be made up.
    if len(reached) < 2 * len(space) or min(reached) == max(reached):
        return Importance(shares={}, step=step, trials=len(reached))
    shares = optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=sweep.recipe.seed)
    )
    shares = {name: float(share) for name, share in shares.items()}
    return Importance(shares=shares, step=step, trials=len(reached))


def as_csv(sweep: Sweep, trials: Sequence[Trial]) -> str:
    """Write one line for each trial, the best first."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["trial", "state", "step", sweep.metric, *sweep.fields, "run_id", "reason"])
    for trial in best_first(trials):
        value = "" if math.isnan(trial.value) else trial.value
        searched = [trial.values[name] for name in sweep.fields]
        table.writerow(
            [trial.number, trial.state, trial.step, value, *searched, trial.run_id, trial.reason]
        )
    return text.getvalue()


def as_table(sweep: Sweep, trials: Sequence[Trial]) -> str:
    """Write the same for a terminal."""
    rows = [["trial", "state", "step", sweep.metric, *map(short, sweep.fields)]]
    for trial in best_first(trials):
        value = "-" if math.isnan(trial.value) else f"{trial.value:.4f}"
        searched = [f"{trial.values[name]:.3g}" for name in sweep.fields]
        rows.append([str(trial.number), trial.state, str(trial.step), value, *searched])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def best_first(trials: Sequence[Trial]) -> list[Trial]:
    """Sort trials: those that went furthest first, then by what they reached."""

    def order(trial: Trial) -> tuple[int, float, int]:
        value = -math.inf if math.isnan(trial.value) else trial.value
        return (-trial.step, -value, trial.number)

    return sorted(trials, key=order)
