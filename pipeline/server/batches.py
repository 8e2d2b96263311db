"""Predict a batch of requests, each by the version that is current when the batch starts."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from pipeline.data.photo import Pixels
from pipeline.server.live_model import LiveModel, LoadedVersion
from pipeline.serving.memory import list_memory_errors


class MaskRequest(NamedTuple):
    """Masks to refine."""

    rles: list[dict[str, Any]]
    """Of the photo's size, see `refinements.read_masks`."""
    max_change: float


class PredictionJob(NamedTuple):
    """A photo to predict."""

    model: LiveModel
    pixels: Pixels
    masks: MaskRequest | None = None
    """For a refiner."""


class Prediction(NamedTuple):
    """The findings of one version in a photo."""

    version: LoadedVersion
    rows: list[dict[str, Any]]
    """Of the predictor; those of refined masks have the given one in `given`."""


def predict_jobs(jobs: Sequence[PredictionJob]) -> list[Prediction | BaseException]:
    """Predict a batch; photos of equal size share a forward pass, those with masks do not.

    Returns:
        For each photo its prediction, or why there is not enough memory for it.
    """
    versions = {job.model.name: job.model.current for job in jobs}
    results: dict[int, Prediction | BaseException] = {}
    for name, version in versions.items():
        indices = [index for index, job in enumerate(jobs) if job.model.name == name]
        mine = [jobs[index] for index in indices]
        results |= zip(indices, _predict_together(version, mine), strict=True)
    return [results[index] for index in range(len(jobs))]


def _predict_together(
    version: LoadedVersion, jobs: Sequence[PredictionJob]
) -> list[Prediction | BaseException]:
    if any(job.masks for job in jobs):
        return [_predict_alone(version, job) for job in jobs]
    try:
        found = version.predictor.predict_photos([job.pixels for job in jobs])
    except list_memory_errors():
        return [_predict_alone(version, job) for job in jobs]
    return [Prediction(version, rows) for rows in found]


def _predict_alone(version: LoadedVersion, job: PredictionJob) -> Prediction | BaseException:
    predictor, pixels, masks = version.predictor, job.pixels, job.masks
    try:
        if masks is None:
            (rows,) = predictor.predict_photos([pixels])
        else:
            refined = predictor.refine_masks(pixels, masks.rles, max_change=masks.max_change)
            rows = [row | {"given": rle} for row, rle in zip(refined, masks.rles, strict=True)]
    except list_memory_errors() as error:
        return error
    return Prediction(version, rows)
