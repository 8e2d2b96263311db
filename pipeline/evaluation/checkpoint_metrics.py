"""The metrics of a run's checkpoints: saved in its folder, and what they choose.

The best checkpoint and the early stop are functions of these files alone, so that a run that
resumes at any step decides as one that was never interrupted.
"""

import json
from collections.abc import Mapping
from typing import TypeAlias

from pipeline import checksums, storage
from pipeline.recipe import CheckpointConfig
from pipeline.text import format_count

_FOLDER = "measured"

MetricsByStep: TypeAlias = Mapping[int, Mapping[str, float]]
"""Metrics by name, by the number of steps done."""


def save_metrics(run_uri: str, metrics: Mapping[str, float], *, step: int) -> None:
    """Save a checkpoint's metrics in the run's folder.

    Raises:
        StorageError: the folder cannot be written.
    """
    checksums.write_file(_file_uri(run_uri, step), json.dumps(metrics, indent=1).encode())


def load_metrics(run_uri: str) -> dict[int, dict[str, float]]:
    """Load the metrics of a run's checkpoints, by step.

    Raises:
        StorageError: a file cannot be read, or was changed after it was written.
    """
    steps = _list_steps(run_uri)
    return {step: json.loads(checksums.read_file(_file_uri(run_uri, step))) for step in steps}


def delete_after(run_uri: str, *, step: int) -> None:
    """Delete the metrics of later steps, which a run that resumes at this one makes again."""
    folder = storage.join(run_uri, _FOLDER)
    late = [each for each in _list_steps(run_uri) if each > step]
    sums = checksums.read_sums(folder) if late else {}
    for each in late:
        uri = _file_uri(run_uri, each)
        storage.remove(uri)
        sums.pop(uri.rpartition("/")[2], None)
    if late:
        checksums.write_sums(folder, sums)


def choose_best(found: MetricsByStep, metric: str) -> int | None:
    """Return the step with the best value of a metric, the first of equal ones, or None.

    Of models that find nothing yet, all with a score of 0, the last has learned the most.
    """
    values = _values(found, metric)
    return max(
        values, key=lambda step: (values[step], -step if values[step] else step), default=None
    )


def has_stalled(found: MetricsByStep, config: CheckpointConfig, *, step: int) -> bool:
    """Tell whether the last `patience` evaluations up to a step were no better than one before.

    A score of 0 is a model that finds nothing yet: nothing is counted before the first higher one.
    """
    values = _values({each: found[each] for each in found if each <= step}, config.best_metric)
    best = choose_best({each: found[each] for each in values}, config.best_metric)
    if not config.patience or best is None or values[best] == 0:
        return False
    return sum(each > best for each in values) >= config.patience


def describe_choice(
    found: MetricsByStep, config: CheckpointConfig, *, steps: int, best: int | None = None
) -> str:
    """Say which checkpoint is the best, and whether training stopped early; "" without a choice.

    Args:
        found: the metrics of the run's checkpoints.
        config: the metric, and the patience with it.
        steps: of the recipe.
        best: the step that was chosen; by default the best of all.
    """
    best = choose_best(found, config.best_metric) if best is None else best
    if best is None or config.best_metric not in found.get(best, {}):
        return ""
    value = found[best][config.best_metric]
    evaluations = format_count(len(_values(found, config.best_metric)), "evaluation")
    reason = f"{value:.4f} is the best of {evaluations}"
    if value == 0:
        reason = f"is 0 in all of {evaluations}, so the last one counts"
    text = f"The model is the checkpoint of step {best}: {config.best_metric} {reason}."
    last = max(found)
    if last < steps and has_stalled(found, config, step=last):
        text += (
            f" Training stopped early, at step {last} of {steps}, after "
            f"{format_count(config.patience, 'evaluation')} without a better value."
        )
    return text


def _values(found: MetricsByStep, metric: str) -> dict[int, float]:
    """Return a metric by step, larger is better."""
    sign = -1.0 if metric.startswith("val_loss") else 1.0
    return {step: sign * found[step][metric] for step in sorted(found) if metric in found[step]}


def _list_steps(run_uri: str) -> list[int]:
    files = storage.list_files(storage.join(run_uri, _FOLDER), suffix=".json")
    return [int(uri.rpartition("/step-")[2].removesuffix(".json")) for uri in files]


def _file_uri(run_uri: str, step: int) -> str:
    return storage.join(run_uri, _FOLDER, f"step-{step:08d}.json")
