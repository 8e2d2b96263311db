"""Run one trial: a Ray Train run with its own checkpoints, MLflow run and results.

The run is named after the trial, so a restarted trial resumes from its own last checkpoint.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from pipeline.tuning.concurrency import CONTROLLER_KEY, TRIAL_DRIVER_RESOURCES
from pipeline.tuning.space import Sweep, Values, trial_recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialContext:
    """Everything that the trials of a sweep must know, as plain values for any machine."""

    sweep: Sweep
    """With absolute paths."""
    parent_run_id: str
    resume_command: str


class _ReportCallback(TuneReportCallback):
    """Report the metrics of each checkpoint to Tune, which may then stop the trial."""

    def __init__(self, metric: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._metric = metric

    def after_report(
        self,
        run_context: Any,  # noqa: ANN401  Ray's signature
        metrics: list[dict[str, Any]],
        checkpoint: ray.train.Checkpoint | None,
    ) -> None:
        """Report rank 0's metrics; after the last step the trial reports its own evaluation."""
        if self._metric in metrics[0]:
            # This method runs in the controller.
            controller = {CONTROLLER_KEY: ray.get_runtime_context().get_actor_id()}
            super().after_report(run_context, [metrics[0] | controller], checkpoint)


def build_trainable(context: TrialContext) -> Callable[[Values], None]:
    """Build the function that Tune calls with the values of a trial."""

    def run_trial(values: Values) -> None:
        # Not at the top: Ray Train's controller imports this file for its callback.
        from pipeline.training import launch  # noqa: PLC0415

        sweep = context.sweep
        number = parse_trial_number(tune.get_context().get_trial_name())
        result = launch.run(
            trial_recipe(sweep.recipe, number=number, values=values),
            parent=launch.ParentRun(
                run_id=context.parent_run_id,
                resume_command=context.resume_command,
                callbacks=(_ReportCallback(sweep.metric),),
            ),
        )
        numbers = {name: float(v) for name, v in result.items() if isinstance(v, int | float)}
        # A metric without a value (the split has no such objects) must not win.
        value = result[sweep.metric]
        numbers[sweep.metric] = -math.inf if value is None else value
        tune.report(numbers | {"step": result["steps"]})

    trainable: Callable[[Values], None] = tune.with_resources(run_trial, TRIAL_DRIVER_RESOURCES)
    return trainable


def parse_trial_number(trial_name: str) -> int:
    """Return the number in a trial's name."""
    return int(trial_name.rpartition("-")[2])
