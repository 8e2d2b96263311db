"""What a user reads while a sweep runs: a line when a trial starts, is measured, and ends."""

import logging
from typing import Any

from ray import tune

from pipeline import storage
from pipeline.tracking import runs
from pipeline.training.progress import duration
from pipeline.tuning.concurrency import release
from pipeline.tuning.space import Sweep, is_baseline, kernel_field, shown, trial_recipe
from pipeline.tuning.trial import number_of

_log = logging.getLogger(__name__)


class Progress(tune.Callback):
    """Tells of trials, and puts in order what a stopped one leaves: its room, its MLflow run."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ANN401  Ray's signature
        """Say what a trial tries."""
        what = shown(trial.config)
        if is_baseline(self._sweep, trial.config):
            kernel = trial.config[kernel_field(self._sweep.recipe)]
            what = f"kernel_size {kernel}, all else as the recipe says"
        _log.info("trial %d of %d: %s", number_of(str(trial)), self._sweep.trials, what)

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Any],
        trial: Any,  # noqa: ANN401
        result: dict[str, Any],
        **info: Any,  # noqa: ANN401
    ) -> None:
        """Say what was measured."""
        metric = self._sweep.metric
        _log.info(
            "trial %d  step %d/%d  %s %.4f  after %s",
            number_of(str(trial)),
            result["step"],
            self._sweep.recipe.optim.steps,
            metric,
            result[metric],
            duration(result["time_total_s"]),
        )

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ANN401
        """Say that a trial has ended, and close the run of one whose process was stopped."""
        number, step = number_of(str(trial)), int(trial.last_result.get("step", 0))
        if step >= self._sweep.recipe.optim.steps:
            _log.info("trial %d is finished", number)
            return
        _log.info("trial %d is stopped at step %d: it does not keep up", number, step)
        release(trial.last_result)
        recipe = trial_recipe(self._sweep.recipe, number=number, values=trial.config)
        runs.finish(runs.open_run(recipe), "KILLED")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ANN401
        """Say that a trial has failed; the others go on."""
        release(trial.last_result)
        _log.info(
            "trial %d failed, and the sweep goes on without it; why is in %s",
            number_of(str(trial)),
            storage.join(
                self._sweep.recipe.storage, self._sweep.recipe.name, str(trial), "error.txt"
            ),
        )
