"""Register trained weights as a model that is loaded by name: models:/NAME@champion.

A version holds this package's code, the weights as safetensors, the recipe and the categories; no
pickle. Only a better version becomes the champion.
"""

import hashlib
import importlib.metadata
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import bsm
from bsm.configs.refine import RefinerConfig
from pipeline import checksums
from pipeline.data.manifest import Category
from pipeline.errors import RegistryError
from pipeline.recipe import Recipe, fingerprint
from pipeline.recipe import to_json as recipe_to_json
from pipeline.registry.lifecycle import promote_if_better, save_evaluation, update_card
from pipeline.registry.provenance import EvaluationRecord, Origin, TrainingData, to_json
from pipeline.registry.versions import (
    DIGEST_TAG,
    EVALUATED_ON_TAG,
    METRIC_TAG,
    ORIGIN_FILE,
    TRAINED_ON_FILE,
    find_version,
    wrap_registry_errors,
)
from pipeline.serving import artifacts
from pipeline.serving.signatures import declare_signature
from pipeline.tracking.environment import read_environment
from pipeline.tracking.runs import RunHandle
from pipeline.tracking.stores import create_client

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_log = logging.getLogger(__name__)

_RETRY = "The run and its checkpoints are kept; start the same run again to register it"
# Packages to store with a model: bsm and pipeline.
_CODE = (Path(bsm.__path__[0]), Path(__file__).resolve().parents[1])

# Packages that the packaged model imports, without those that only training needs.
REQUIREMENTS = (
    "annotated-types",
    "jaxtyping",
    "kornia",
    "mlflow",
    "numpy",
    "opencv-python-headless",
    "pandas",
    "pillow",
    "pyarrow",
    "pycocotools",
    "pydantic",
    "pydantic-core",
    "safetensors",
    "timm",
    "torch",
    "torchvision",
    "typing-extensions",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RegisteredVersion:
    """A version, and whether it became the champion."""

    name: str
    version: str
    uri: str
    """models:/NAME/VERSION."""
    is_champion: bool
    decision: str
    """Explanation, with the metrics."""


def register(
    handle: RunHandle,
    *,
    name: str,
    weights_path: str | Path,
    recipe: Recipe,
    categories: Sequence[Category],
    evaluation: EvaluationRecord,
    training_data: TrainingData | None = None,
    started_from: str = "",
) -> RegisteredVersion:
    """Register trained weights as a new version of a model, unless this run already did.

    The version becomes the champion if it is better than the current one on the same images.

    Args:
        handle: the run that trained the weights.
        name: the registered model.
        weights_path: local .safetensors file.
        recipe: recipe of the run.
        categories: in the order of category_index.
        evaluation: evaluation of the weights; each finite metric also becomes a tag.
        training_data: training split, for the model card.
        started_from: the registered version of the run's start weights.

    Raises:
        RegistryError: an argument is missing or wrong, or the registry does not answer.
    """
    weights = Path(weights_path)
    _validate(name=name, weights=weights, recipe=recipe, categories=categories)
    origin = Origin(
        run_name=recipe.name,
        run_id=handle.run_id,
        started_from=started_from,
        weights_bytes=weights.stat().st_size,
        environment=read_environment(),
    )
    digest = _hash_file(weights)
    tags = {
        f"{METRIC_TAG}{key}": f"{value:.6f}"
        for key, value in evaluation.metrics.items()
        if isfinite(value)
    } | {
        "recipe_fingerprint": fingerprint(recipe),
        "data_fingerprint": training_data.fingerprint if training_data else "",
        EVALUATED_ON_TAG: evaluation.evaluated_on,
        DIGEST_TAG: digest,
    }
    with wrap_registry_errors(f"{name!r} was not registered", then=_RETRY):
        store = create_client(handle.tracking_uri)
        version = _find_version_of_run(store, name, handle.run_id, digest)
        if version is None:
            with tempfile.TemporaryDirectory(prefix="model-") as folder:
                packaged = package_model(
                    Path(folder), weights_path=weights, recipe=recipe, categories=categories
                )
                (packaged / ORIGIN_FILE).write_text(to_json(origin))
                if training_data:
                    (packaged / TRAINED_ON_FILE).write_text(to_json(training_data))
                version = _upload(store, handle, packaged, name=name, digest=digest)
        for key, value in tags.items():
            store.set_model_version_tag(name, version.version, key, value)
        registered = find_version(name, registry=handle.tracking_uri, version=str(version.version))
        save_evaluation(registered, evaluation)
        decision = promote_if_better(registered)
        store.set_model_version_tag(name, version.version, "champion_decision", decision.text)
        store.log_text(handle.run_id, decision.text + "\n", "champion_decision.txt")
        update_card(registered)
    _log.info("%s", decision.text)
    return RegisteredVersion(
        name=name,
        version=registered.version,
        uri=registered.uri,
        is_champion=decision.is_champion,
        decision=decision.text,
    )


def package_model(
    folder: Path, *, weights_path: Path, recipe: Recipe, categories: Sequence[Category]
) -> Path:
    """Save a model as a folder for mlflow.pyfunc.load_model, and return the folder."""
    import mlflow.pyfunc  # noqa: PLC0415  mlflow is slow to import

    sources = folder / "artifacts"
    sources.mkdir()
    files = {
        "weights": sources / artifacts.WEIGHTS_FILE,
        "recipe": sources / artifacts.RECIPE_FILE,
        "categories": sources / artifacts.CATEGORIES_FILE,
    }
    shutil.copyfile(weights_path, files["weights"])
    files["recipe"].write_text(recipe_to_json(recipe))
    files["categories"].write_text(artifacts.categories_to_json(categories))
    plain = (files["recipe"], files["categories"])
    checksums.write_sums(
        str(sources), {f.name: checksums.hash_bytes(f.read_bytes()) for f in plain}
    )
    files["checksums"] = sources / checksums.SUMS_FILE
    with _silence_mlflow():
        mlflow.pyfunc.save_model(
            folder / "model",
            python_model=str(Path(artifacts.__file__).with_name("packaged_model.py")),
            artifacts={key: str(path) for key, path in files.items()},
            code_paths=[str(path) for path in _CODE],
            pip_requirements=pin_requirements(),
        )
    declare_signature(folder / "model", recipe.model.task)
    return folder / "model"


def pin_requirements() -> list[str]:
    """Pin the packages that the packaged model imports to the installed versions."""
    return [
        # A local version such as "2.10.0+cu130" exists only on its own index.
        f"{name}=={importlib.metadata.version(name).partition('+')[0]}"
        for name in REQUIREMENTS
    ]


def _validate(*, name: str, weights: Path, recipe: Recipe, categories: Sequence[Category]) -> None:
    rules = [
        (
            bool(name) and not set(name) & set('/:.%"'),
            f"model name {name!r} must not be empty or contain / : . % or quotes; "
            "choose another with --tracking.model-name",
        ),
        (
            weights.suffix == ".safetensors" and weights.is_file(),
            f"weights {weights} must be an existing .safetensors file; write it with save_weights",
        ),
    ]
    if not isinstance(recipe.model, RefinerConfig):
        classes = recipe.model.num_classes
        rules.append(
            (
                len(categories) == classes,
                f"{len(categories)} categories for a model of num_classes {classes}",
            )
        )
    broken = [text for holds, text in rules if not holds]
    if broken:
        raise RegistryError(f"cannot register {name!r}: " + "; ".join(broken))


def _find_version_of_run(
    store: "MlflowClient", name: str, run_id: str, digest: str
) -> "ModelVersion | None":
    for version in store.search_model_versions(f"name='{name}'"):
        if version.run_id == run_id and version.tags.get(DIGEST_TAG) == digest:
            return version
    return None


def _upload(
    store: "MlflowClient", handle: RunHandle, folder: Path, *, name: str, digest: str
) -> "ModelVersion":
    # One folder per name and weights, so that no version overwrites the files of another.
    folder_in_run = f"models/{hashlib.sha256(f'{name}/{digest}'.encode()).hexdigest()[:12]}"
    store.log_artifacts(handle.run_id, str(folder), folder_in_run)
    if not store.search_registered_models(f"name='{name}'"):
        store.create_registered_model(name)
    source = f"{store.get_run(handle.run_id).info.artifact_uri}/{folder_in_run}"
    # Tagged on creation, so that a restart after a crash recognizes the version.
    return store.create_model_version(name, source, handle.run_id, tags={DIGEST_TAG: digest})


@contextmanager
def _silence_mlflow() -> Iterator[None]:
    # save_model gives advice on type hints and input examples that does not apply here. Warnings
    # are recorded and dropped, because it overrides filters.
    names = ("mlflow.pyfunc", "mlflow.models.model", "mlflow.models.signature")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(record=True):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _hash_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
