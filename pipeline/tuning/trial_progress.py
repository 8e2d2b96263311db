"""Log a line when a trial starts, is evaluated, or ends."""

import logging
from typing import Any

from ray import tune

from pipeline import storage
from pipeline.progress import format_duration
from pipeline.tracking import runs
from pipeline.tuning.concurrency import release_workers
from pipeline.tuning.space import Sweep, format_values, is_baseline, kernel_field, trial_recipe
from pipeline.tuning.trial import parse_trial_number

_log = logging.getLogger(__name__)


class TrialProgress(tune.Callback):
    """Log the progress of trials, and free the workers and the MLflow run of a stopped one."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ANN401  Ray's signature
        """Log the values of a trial."""
        values = format_values(trial.config)
        if is_baseline(self._sweep, trial.config):
            kernel = trial.config[kernel_field(self._sweep.recipe)]
            values = f"kernel_size {kernel}, otherwise the recipe"
        number = parse_trial_number(str(trial))
        _log.info("trial %d of %d: %s", number, self._sweep.trials, values)

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Any],
        trial: Any,  # noqa: ANN401
        result: dict[str, Any],
        **info: Any,  # noqa: ANN401
    ) -> None:
        """Log the metric of an evaluation."""
        metric = self._sweep.metric
        _log.info(
            "trial %d  step %d/%d  %s %.4f  after %s",
            parse_trial_number(str(trial)),
            result["step"],
            self._sweep.recipe.optim.steps,
            metric,
            result[metric],
            format_duration(result["time_total_s"]),
        )

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ANN401
        """Log the end of a trial, and close the MLflow run if Tune stopped its process."""
        number, step = parse_trial_number(str(trial)), int(trial.last_result.get("step", 0))
        if step >= self._sweep.recipe.optim.steps:
            _log.info("trial %d finished", number)
            return
        _log.info("trial %d stopped early at step %d", number, step)
        release_workers(trial.last_result)
        recipe = trial_recipe(self._sweep.recipe, number=number, values=trial.config)
        runs.finish(runs.open_run(recipe), "KILLED")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ANN401
        """Log the failure of a trial; the others continue."""
        release_workers(trial.last_result)
        recipe = self._sweep.recipe
        _log.info(
            "trial %d failed, and the sweep continues without it; see %s",
            parse_trial_number(str(trial)),
            storage.join(recipe.storage, recipe.name, str(trial), "error.txt"),
        )
