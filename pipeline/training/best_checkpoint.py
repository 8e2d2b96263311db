"""The best checkpoint of a run, and whether the run is done."""

from pipeline.evaluation.checkpoint_metrics import choose_best, has_stalled, load_metrics
from pipeline.recipe import CheckpointConfig, Recipe
from pipeline.training import checkpoint
from pipeline.training.checkpoint import CheckpointRef


def find_best(run_uri: str, config: CheckpointConfig, *, step: int) -> CheckpointRef | None:
    """Return the best checkpoint up to a step of those that are there, or None.

    None if the recipe names no metric, or no evaluation gave it a value.

    Raises:
        StorageError: the folder cannot be read.
    """
    if not config.best_metric:
        return None
    refs = {ref.step: ref for ref in checkpoint.find_all(run_uri) if ref.step <= step}
    measured = load_metrics(run_uri)
    best = choose_best({each: measured.get(each, {}) for each in refs}, config.best_metric)
    return None if best is None else refs[best]


def prune(run_uri: str, config: CheckpointConfig, *, step: int) -> None:
    """Delete all but the newest checkpoints and the best one; see `checkpoint.prune`."""
    best = find_best(run_uri, config, step=step)
    protected = () if best is None else (best.step,)
    checkpoint.prune(run_uri, step=step, keep=config.keep, protected=protected)


def is_done(run_uri: str, recipe: Recipe, *, step: int) -> bool:
    """Tell whether a run with a checkpoint of this step is at its end, or has stopped early."""
    return step >= recipe.optim.steps or has_stopped_early(run_uri, recipe, step=step)


def has_stopped_early(run_uri: str, recipe: Recipe, *, step: int) -> bool:
    """Tell whether a run stops at this step because its metric gets no better."""
    config = recipe.checkpoint
    if not config.patience or step >= recipe.optim.steps:
        return False
    return has_stalled(load_metrics(run_uri), config, step=step)
