"""A registered version measured on a split: the numbers are kept with it, and not made twice."""

import logging

from bsm.build import build_model
from bsm.checkpoints.weights import load_weights
from bsm.configs.models import without_weights
from pipeline.data.manifest import read_manifest
from pipeline.errors import DatasetError, RegistryError
from pipeline.evaluation.evaluate import evaluate_model
from pipeline.recipe import EvaluationConfig, from_json
from pipeline.registry.lifecycle import Measure, evaluations_of, keep_measured, refresh_card
from pipeline.registry.provenance import Measured, name_of
from pipeline.registry.versions import (
    CATEGORIES_FILE,
    RECIPE_FILE,
    WEIGHTS_FILE,
    Version,
    downloaded,
    read_file,
)
from pipeline.serving.categories import categories_from_json

_log = logging.getLogger(__name__)

_MOST_NAMES = 8


def measuring(
    split_uri: str,
    settings: EvaluationConfig,
    *,
    num_workers: int = 0,
    use_gpu: bool = False,
) -> Measure:
    """Give what measures versions on a split; what was measured there before is not done again.

    Args:
        split_uri: folder of shards.
        settings: as in `evaluate_version`, the same for all versions.
        num_workers: see there.
        use_gpu: see there.

    Raises:
        DatasetError: the split is not complete.
    """
    manifest = read_manifest(split_uri)
    images = min(manifest.images, settings.max_images or manifest.images)
    name = name_of(manifest.fingerprint, images, settings)

    def measure(version: Version) -> Measured:
        known = (each for each in evaluations_of(version) if each.evaluated_on == name)
        measured = next(known, None)
        if measured is None:
            _log.info("measuring %s on %s", version.uri, split_uri)
            measured = evaluate_version(
                version, split_uri, settings, num_workers=num_workers, use_gpu=use_gpu
            )
        return measured

    return measure


def settings_of(version: Version) -> EvaluationConfig:
    """Give the settings with which a version was evaluated in training.

    Raises:
        RegistryError: it was not registered by this package.
    """
    return from_json(read_file(version, RECIPE_FILE).decode()).evaluation


def evaluate_version(
    version: Version,
    split_uri: str,
    settings: EvaluationConfig,
    *,
    num_workers: int = 0,
    use_gpu: bool = False,
) -> Measured:
    """Run a registered model over a split, measure it, and keep the numbers with it.

    Args:
        version: which one.
        split_uri: folder of shards.
        settings: how many images, how they are batched, and what is measured.
        num_workers: Ray workers that share the images; 0 works in this process, without Ray.
        use_gpu: on a GPU, one for each worker.

    Raises:
        DatasetError: the split is not complete, or has other categories than the model.
        RegistryError: the version cannot be read.
    """
    manifest = read_manifest(split_uri)
    categories = categories_from_json(read_file(version, CATEGORIES_FILE).decode())
    if categories != manifest.categories:
        known, there = (
            _few([category.name for category in each]) for each in (categories, manifest.categories)
        )
        raise DatasetError(
            f"{version.uri} knows {len(categories)} categories ({known}), {split_uri} has "
            f"{len(manifest.categories)} ({there}): numbers would mean nothing. Name a split of "
            "the data set that the model was made for"
        )
    recipe = from_json(read_file(version, RECIPE_FILE).decode())
    model = build_model(without_weights(recipe.model))
    with downloaded(version, WEIGHTS_FILE) as file:
        try:
            load_weights(model, file)
        except ValueError as error:
            raise RegistryError(
                f"{version.uri}: the registered weights do not fit their recipe: {error}"
            ) from error
    model.eval()
    evaluation = evaluate_model(
        model, split_uri, recipe.data, settings, num_workers=num_workers, use_gpu=use_gpu
    )
    measured = Measured.of(evaluation, fingerprint=manifest.fingerprint, settings=settings)
    keep_measured(version, measured)
    refresh_card(version)
    return measured


def _few(names: list[str]) -> str:
    more = f", and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
