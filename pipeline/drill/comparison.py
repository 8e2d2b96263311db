"""Compare a run that had faults with one that had none."""

import csv
import io
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.drill.scene import TRAIN_IMAGES, Scene
from pipeline.errors import DrillError
from pipeline.text import format_count

_log = logging.getLogger(__name__)


class References:
    """Runs without a fault by number of workers, each trained when it is first needed.

    Args:
        folder: of these runs.
        shards: that all drills train on.
        environment: of the jobs.
    """

    def __init__(self, folder: Path, *, shards: str, environment: dict[str, str]) -> None:
        self._folder, self._shards, self._environment = folder, shards, environment
        self._results: dict[int, Mapping[str, Any]] = {}

    def __call__(self, workers: int) -> Mapping[str, Any]:
        """Return the RESULT of the run with a number of workers; 0 is this process alone."""
        if workers not in self._results:
            words = format_count(workers, "worker") if workers else "one process"
            _log.info("drill: training with %s and without a fault, for comparison", words)
            name = f"calm-{workers}" if workers else "calm"
            scene = Scene(
                name=name,
                folder=self._folder / name,
                shards=self._shards,
                environment=self._environment,
            )
            _, self._results[workers] = scene.finish(scene.recipe(workers=workers))
            check_epochs(self._results[workers])
        return self._results[workers]


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
    *whole, _ = epochs.values()
    if any(len(set(images)) != TRAIN_IMAGES or len(images) != TRAIN_IMAGES for images in whole):
        raise DrillError("an epoch of the run without a fault does not have every image once")


def _read_samples(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    text = storage.read_bytes(result["samples"]).decode()
    return [tuple(row) for row in csv.reader(io.StringIO(text))][1:]
