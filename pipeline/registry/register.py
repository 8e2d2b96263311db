"""From trained weights to a model that anyone pulls by name: models:/NAME@champion.

A registered version holds this package's code, the weights as safetensors, the recipe and the
categories; no pickle. The alias `champion` moves only to a version that measured better.
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
from pipeline.data.manifest import Category
from pipeline.errors import RegistryError
from pipeline.recipe import Recipe, fingerprint
from pipeline.recipe import to_json as recipe_to_json
from pipeline.registry.lifecycle import contend, keep_measured, refresh_card
from pipeline.registry.provenance import Measured, Origin, TrainedOn, to_json
from pipeline.registry.versions import (
    DIGEST_TAG,
    EVALUATED_ON_TAG,
    METRIC_TAG,
    ORIGIN_FILE,
    TRAINED_ON_FILE,
    find,
    registry_errors,
)
from pipeline.serving.categories import categories_to_json
from pipeline.serving.signatures import declare_signature
from pipeline.tracking.environment import environment
from pipeline.tracking.runs import RunHandle
from pipeline.tracking.stores import client

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_log = logging.getLogger(__name__)

_AGAIN = "The run and its checkpoints are kept; start the same run again to register it"
# The packages bsm and pipeline, this one found by its own place.
_CODE = (Path(bsm.__path__[0]), Path(__file__).resolve().parents[1])

# What the packaged model imports, and nothing of what only training needs.
REQUIREMENTS = (
    "jaxtyping",
    "kornia",
    "mlflow",
    "numpy",
    "opencv-python-headless",
    "pandas",
    "pillow",
    "pyarrow",
    "pycocotools",
    "safetensors",
    "timm",
    "torch",
    "torchvision",
    "typing-extensions",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RegisteredVersion:
    """A version in the registry, and whether the champion alias went to it."""

    name: str
    version: str
    uri: str
    """models:/NAME/VERSION."""
    is_champion: bool
    decision: str
    """Why the alias moved or stayed, with the numbers."""


def register(
    handle: RunHandle,
    *,
    name: str,
    weights_path: str | Path,
    recipe: Recipe,
    categories: Sequence[Category],
    measured: Measured,
    trained_on: TrainedOn | None = None,
    started_from: str = "",
) -> RegisteredVersion:
    """Register trained weights as a new version of a model; the same weights again change nothing.

    It becomes the champion when it measured better than the one there is.

    Args:
        handle: the run that trained them.
        name: the registered model.
        weights_path: a local .safetensors file.
        recipe: how to build the model and prepare photos for it.
        categories: in the order of category_index.
        measured: what was measured; each finite number becomes a tag of the version, too. Versions
            measured on other images are not compared.
        trained_on: the data, for the model card.
        started_from: the registered version whose weights the run started from.

    Raises:
        RegistryError: something to register is missing or wrong, or the registry does not answer.
    """
    weights = Path(weights_path)
    _check(name=name, weights=weights, recipe=recipe, categories=categories)
    origin = Origin(
        run_name=recipe.name,
        run_id=handle.run_id,
        started_from=started_from,
        weights_bytes=weights.stat().st_size,
        environment=environment(),
    )
    digest = _sha256(weights)
    tags = {
        f"{METRIC_TAG}{key}": f"{value:.6f}"
        for key, value in measured.metrics.items()
        if isfinite(value)
    } | {
        "recipe_fingerprint": fingerprint(recipe),
        "data_fingerprint": trained_on.fingerprint if trained_on else "",
        EVALUATED_ON_TAG: measured.evaluated_on,
        DIGEST_TAG: digest,
    }
    with registry_errors(f"{name!r} was not registered", then=_AGAIN):
        store = client(handle.tracking_uri)
        version = _known_version(store, name, handle.run_id, digest)
        if version is None:
            with tempfile.TemporaryDirectory(prefix="model-") as folder:
                packaged = package(
                    Path(folder), weights_path=weights, recipe=recipe, categories=categories
                )
                (packaged / ORIGIN_FILE).write_text(to_json(origin))
                if trained_on:
                    (packaged / TRAINED_ON_FILE).write_text(to_json(trained_on))
                version = _upload(store, handle, packaged, name=name, digest=digest)
        for key, value in tags.items():
            store.set_model_version_tag(name, version.version, key, value)
        made = find(name, registry=handle.tracking_uri, version=str(version.version))
        keep_measured(made, measured)
        decision = contend(made)
        store.set_model_version_tag(name, version.version, "champion_decision", decision.text)
        store.log_text(handle.run_id, decision.text + "\n", "champion_decision.txt")
        refresh_card(made)
    _log.info("%s", decision.text)
    return RegisteredVersion(
        name=name,
        version=made.version,
        uri=made.uri,
        is_champion=decision.is_champion,
        decision=decision.text,
    )


def package(
    folder: Path, *, weights_path: Path, recipe: Recipe, categories: Sequence[Category]
) -> Path:
    """Write a model as a folder that mlflow.pyfunc.load_model takes, and return it."""
    import mlflow.pyfunc  # noqa: PLC0415  mlflow is slow to import

    parts = folder / "parts"
    parts.mkdir()
    files = {
        "weights": parts / "model.safetensors",
        "recipe": parts / "recipe.json",
        "categories": parts / "categories.json",
    }
    shutil.copyfile(weights_path, files["weights"])
    files["recipe"].write_text(recipe_to_json(recipe))
    files["categories"].write_text(categories_to_json(categories))
    with _quiet():
        mlflow.pyfunc.save_model(
            folder / "model",
            python_model=str(Path(__file__).with_name("packaged_model.py")),
            artifacts={key: str(path) for key, path in files.items()},
            code_paths=[str(path) for path in _CODE],
            pip_requirements=requirements(),
        )
    declare_signature(folder / "model", recipe.model.task)
    return folder / "model"


def requirements() -> list[str]:
    """Pin what the packaged model imports to the versions that are installed here."""
    return [
        # "2.10.0+cu130" is known only to the index it came from.
        f"{name}=={importlib.metadata.version(name).partition('+')[0]}"
        for name in REQUIREMENTS
    ]


def _check(
    *,
    name: str,
    weights: Path,
    recipe: Recipe,
    categories: Sequence[Category],
) -> None:
    rules = [
        (
            bool(name) and not set(name) & set('/:.%"'),
            f"model name {name!r} must not be empty or hold any of / : . % and quotes; "
            "take another with --tracking.model-name",
        ),
        (
            weights.suffix == ".safetensors" and weights.is_file(),
            f"weights {weights} must be an existing .safetensors file; write it with save_weights",
        ),
        (
            len(categories) == recipe.model.num_classes,
            f"{len(categories)} categories for a model of num_classes {recipe.model.num_classes}",
        ),
    ]
    broken = [text for holds, text in rules if not holds]
    if broken:
        raise RegistryError(f"cannot register {name!r}: " + "; ".join(broken))


def _known_version(
    store: "MlflowClient", name: str, run_id: str, digest: str
) -> "ModelVersion | None":
    for version in store.search_model_versions(f"name='{name}'"):
        if version.run_id == run_id and version.tags.get(DIGEST_TAG) == digest:
            return version
    return None


def _upload(
    store: "MlflowClient", handle: RunHandle, folder: Path, *, name: str, digest: str
) -> "ModelVersion":
    # A folder of its own for each version: a later one must not change the files of this one, nor
    # the same weights under another name.
    place = f"models/{hashlib.sha256(f'{name}/{digest}'.encode()).hexdigest()[:12]}"
    store.log_artifacts(handle.run_id, str(folder), place)
    if not store.search_registered_models(f"name='{name}'"):
        store.create_registered_model(name)
    source = f"{store.get_run(handle.run_id).info.artifact_uri}/{place}"
    # Tagged at birth: whoever finds the version after a crash knows what it is.
    return store.create_model_version(name, source, handle.run_id, tags={DIGEST_TAG: digest})


@contextmanager
def _quiet() -> Iterator[None]:
    # save_model advises on type hints and input examples, which are as we want them. Recorded and
    # forgotten, because it sets its own filters against ours.
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


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
