"""Compare a run that had faults with one that had none."""

import csv
import io
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipeline import storage
from pipeline.drill.scene import Outcome, Scene
from pipeline.errors import DrillError
from pipeline.recipe import Recipe

_log = logging.getLogger(__name__)


class References:
    """Runs without a fault, each trained when a drill is first compared with it.

    Args:
        calm: the scene of all of them.
    """

    def __init__(self, calm: Scene) -> None:
        self._calm = calm
        self._results: dict[str, Mapping[str, Any]] = {}

    def find(self, outcome: Outcome) -> Mapping[str, Any]:
        """Return the RESULT of the run that a drill's run must equal."""
        workers = outcome.workers or 0
        make = self._calm.long_recipe if outcome.is_long else self._calm.recipe
        length = "long" if outcome.is_long else "short"
        return self.train(f"{length} run, {workers or 'no'} workers", make(workers=workers))

    def train(self, name: str, recipe: Recipe) -> Mapping[str, Any]:
        """Train without a fault, unless this was done already."""
        if name not in self._results:
            _log.info("drill: training without a fault, for comparison: %s", name)
            run = "calm-" + name.replace(",", "").replace(" ", "-")
            _, self._results[name] = self._calm.finish(replace(recipe, name=run))
            check_epochs(self._results[name])
        return self._results[name]


def compare_samples(result: Mapping[str, Any], expected: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many samples a run trained less often and more often than it must.

    Args:
        result: RESULT of the run.
        expected: RESULT of the run without a fault.
    """
    found, wanted = (Counter(_read_samples(each)) for each in (result, expected))
    return (wanted - found).total(), (found - wanted).total()


def has_same_weights(result: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    """Tell whether two runs ended with the same weights, bit for bit."""
    first, second = (storage.read_bytes(each["weights"]) for each in (result, expected))
    return first == second


def check_epochs(result: Mapping[str, Any]) -> None:
    """Check that each whole epoch of a run has every image once.

    Raises:
        DrillError: one has not.
    """
    epochs: dict[str, list[str]] = {}
    for _, epoch, _, image in _read_samples(result):
        epochs.setdefault(epoch, []).append(image)
    *whole, last = (sorted(images) for images in epochs.values())
    every = sorted(set(whole[0]))
    if any(images != every for images in whole) or len(set(last)) != len(last):
        raise DrillError(f"an epoch of the run {result['name']} does not have every image once")


def _read_samples(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    text = storage.read_bytes(result["samples"]).decode()
    return [tuple(row) for row in csv.reader(io.StringIO(text))][1:]
