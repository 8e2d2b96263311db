"""Evaluate a registered version on a split, and keep the metrics with it."""

import logging

from pipeline.data.learnable import describe_unlearnable
from pipeline.data.manifest import Manifest, read_manifest
from pipeline.data.schema import get_shard_task
from pipeline.errors import DatasetError, RecipeError
from pipeline.evaluation.evaluate import evaluate_model
from pipeline.recipe import EvaluationConfig, from_json
from pipeline.registry.lifecycle import (
    VersionEvaluator,
    read_evaluations,
    save_evaluation,
    update_card,
)
from pipeline.registry.predict import RegisteredRefiner, load_version
from pipeline.registry.provenance import EvaluationRecord, describe_evaluation_set
from pipeline.registry.versions import (
    CATEGORIES_FILE,
    RECIPE_FILE,
    Version,
    read_file,
)
from pipeline.serving.artifacts import categories_from_json
from pipeline.text import format_names

_log = logging.getLogger(__name__)

_MAX_NAMES = 8


def make_evaluator(
    split_uri: str,
    settings: EvaluationConfig,
    *,
    num_workers: int = 0,
    use_gpu: bool = False,
    refiner: RegisteredRefiner | None = None,
) -> VersionEvaluator:
    """Create a function that evaluates versions on a split, unless they were already.

    Args:
        split_uri: folder of shards.
        settings: as for `evaluate_version`, the same for all versions.
        num_workers: as for `evaluate_version`.
        use_gpu: as for `evaluate_version`.
        refiner: as for `evaluate_version`.

    Raises:
        DatasetError: the split is incomplete or has nothing to measure.
    """
    manifest = _read_split(split_uri)
    images = min(manifest.images, settings.max_images or manifest.images)
    refined_by = refiner.uri if refiner else ""
    evaluated_on = describe_evaluation_set(
        manifest.fingerprint, images, settings, refined_by=refined_by
    )

    def evaluate(version: Version) -> EvaluationRecord:
        for record in read_evaluations(version):
            if record.evaluated_on == evaluated_on:
                return record
        _log.info("evaluating %s on %s", version.uri, split_uri)
        return evaluate_version(
            version,
            split_uri,
            settings,
            num_workers=num_workers,
            use_gpu=use_gpu,
            refiner=refiner,
        )

    return evaluate


def read_evaluation_config(version: Version) -> EvaluationConfig:
    """Read the settings with which a version was evaluated in training.

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
    refiner: RegisteredRefiner | None = None,
) -> EvaluationRecord:
    """Evaluate a registered version on a split, and save the metrics with it.

    Args:
        version: the version.
        split_uri: folder of shards.
        settings: settings of the evaluation.
        num_workers: Ray workers that share the images; 0 evaluates in this process, without Ray.
        use_gpu: use a GPU, one per worker.
        refiner: refines the masks before they are scored; the record names it.

    Raises:
        DatasetError: the split is incomplete, has nothing to measure, or has other categories than
            the model.
        RecipeError: there is a refiner, and the version predicts no masks.
        RegistryError: the version cannot be read.
    """
    manifest = _read_split(split_uri)
    categories = categories_from_json(read_file(version, CATEGORIES_FILE).decode())
    recipe = from_json(read_file(version, RECIPE_FILE).decode())
    if manifest.task != get_shard_task(recipe.model.task):
        raise DatasetError(
            f"{split_uri} holds {manifest.task} shards, which a {recipe.model.task} model such as "
            f"{version.uri} cannot be measured on"
        )
    if recipe.model.task != "refine" and categories != manifest.categories:
        known, present = (
            format_names([category.name for category in each], limit=_MAX_NAMES)
            for each in (categories, manifest.categories)
        )
        raise DatasetError(
            f"{version.uri} has {len(categories)} categories ({known}), "
            f"{split_uri} has {len(manifest.categories)} ({present}). "
            "Metrics need the same categories: use a split of the model's dataset"
        )
    if refiner and recipe.model.task != "instance":
        raise RecipeError(
            f"{version.uri} is a model of task {recipe.model.task}, which predicts no masks to "
            "refine: leave out --refine"
        )
    if settings.has_views and recipe.model.task == "refine":
        raise RecipeError(
            f"{version.uri} is a refiner, which has no views to merge: leave out --flip and "
            "--scales"
        )
    predictor = load_version(version, device="cpu")
    evaluation = evaluate_model(
        predictor.model,
        split_uri,
        recipe.data,
        settings,
        num_workers=num_workers,
        use_gpu=use_gpu,
        # On the CPU: a worker may have no GPU, or another one.
        refiner=refiner.model.cpu() if refiner else None,
    )
    record = EvaluationRecord.from_evaluation(
        evaluation,
        fingerprint=manifest.fingerprint,
        settings=settings,
        refined_by=refiner.uri if refiner else "",
    )
    save_evaluation(version, record)
    update_card(version)
    return record


def _read_split(split_uri: str) -> Manifest:
    manifest = read_manifest(split_uri)
    if reason := describe_unlearnable(manifest):
        raise DatasetError(f"{split_uri} has nothing to measure: {reason}. Use a labeled split")
    return manifest
