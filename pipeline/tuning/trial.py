"""One trial: a Ray Train run of its own, with its checkpoints, its MLflow run and its results.

Started again, it goes on from its own last checkpoint, because its run's name is the trial's.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from pipeline.training import launch
from pipeline.training.launch import PartOf
from pipeline.tuning.concurrency import CONTROLLER, STARTER
from pipeline.tuning.space import Sweep, Values, trial_recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What all trials of a sweep need to know; plain values, for any machine."""

    sweep: Sweep
    """With paths that hold in every working directory."""
    parent_run_id: str
    resume_command: str


class _Measured(TuneReportCallback):
    """Hands what was measured at a checkpoint to Tune, which may stop the trial for it."""

    def __init__(self, metric: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._metric = metric

    def after_report(
        self,
        run_context: Any,  # noqa: ANN401  Ray's signature
        metrics: list[dict[str, Any]],
        checkpoint: ray.train.Checkpoint | None,
    ) -> None:
        """Pass on the first worker's numbers; at the last step the whole run is yet to report."""
        if self._metric in metrics[0]:
            # This runs in the controller.
            own = {CONTROLLER: ray.get_runtime_context().get_actor_id()}
            super().after_report(run_context, [metrics[0] | own], checkpoint)


def trainable(setting: Setting) -> Callable[[Values], None]:
    """Make what Tune calls with the values of a trial."""

    def trial(values: Values) -> None:
        sweep = setting.sweep
        number = number_of(tune.get_context().get_trial_name())
        result = launch.run(
            trial_recipe(sweep.recipe, number=number, values=values),
            part_of=PartOf(
                parent_run_id=setting.parent_run_id,
                resume_command=setting.resume_command,
                callbacks=(_Measured(sweep.metric),),
            ),
        )
        numbers = {name: float(v) for name, v in result.items() if isinstance(v, int | float)}
        # A metric that is no number (nothing of the kind is in the split) cannot win.
        value = result[sweep.metric]
        numbers[sweep.metric] = -math.inf if value is None else value
        tune.report(numbers | {"step": result["steps"]})

    made: Callable[[Values], None] = tune.with_resources(trial, STARTER)
    return made


def number_of(trial_name: str) -> int:
    """Read the number out of a trial's name."""
    return int(trial_name.rpartition("-")[2])
