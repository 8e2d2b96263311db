"""From trained weights to a model that anyone pulls by name: models:/NAME@champion.

A registered version holds this package's code, the weights as safetensors, the recipe and the
categories; no pickle. The alias `champion` moves only to a version that measured better.
"""

import hashlib
import importlib.metadata
import logging
import math
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import bsm
from pipeline.data.manifest import Category
from pipeline.errors import RegistryError
from pipeline.recipe import Recipe, fingerprint, to_json
from pipeline.tracking.model_parts import categories_to_json
from pipeline.tracking.runs import RunHandle
from pipeline.tracking.signatures import declare_signature
from pipeline.tracking.stores import client, masked

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_log = logging.getLogger(__name__)

CHAMPION = "champion"
# The packages bsm and pipeline, this one found by its own place.
_CODE = (Path(bsm.__path__[0]), Path(__file__).resolve().parents[1])
_EVALUATED_ON = "evaluated_on"
_DIGEST = "weights_sha256"

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


class _Decision(NamedTuple):
    moves: bool
    text: str


def register(
    handle: RunHandle,
    *,
    name: str,
    weights_path: str | Path,
    recipe: Recipe,
    categories: Sequence[Category],
    metrics: Mapping[str, float],
    champion_metric: str = "boundary_ap",
    evaluated_on: str = "",
) -> RegisteredVersion:
    """Register trained weights as a new version of a model; the same weights again change nothing.

    Args:
        handle: the run that trained them.
        name: the registered model.
        weights_path: a local .safetensors file.
        recipe: how to build the model and prepare photos for it.
        categories: in the order of category_index.
        metrics: what was measured; each becomes a tag of the version.
        champion_metric: which of them decides; more is better. A version for which it is missing or
            NaN does not become the champion.
        evaluated_on: names the images that the metrics come from. Versions measured on other images
            are not compared.

    Raises:
        RegistryError: something to register is missing or wrong, or the registry does not answer.
    """
    weights = Path(weights_path)
    _check(
        name=name,
        weights=weights,
        recipe=recipe,
        categories=categories,
    )
    digest = _sha256(weights)
    tags = {f"metric.{key}": f"{value:.6f}" for key, value in metrics.items()} | {
        "recipe_fingerprint": fingerprint(recipe),
        _EVALUATED_ON: evaluated_on,
        _DIGEST: digest,
    }
    with _registry_errors(name):
        store = client(handle.tracking_uri)
        version = _known_version(store, name, handle.run_id, digest)
        if version is None:
            with tempfile.TemporaryDirectory(prefix="model-") as folder:
                packaged = package(
                    Path(folder), weights_path=weights, recipe=recipe, categories=categories
                )
                version = _upload(store, handle, packaged, name=name, digest=digest)
        for key, value in tags.items():
            store.set_model_version_tag(name, version.version, key, value)
        decision = _decide(store, name, version, tags, metric=champion_metric)
        if decision.moves:
            store.set_registered_model_alias(name, CHAMPION, version.version)
        store.set_model_version_tag(name, version.version, "champion_decision", decision.text)
        store.log_text(handle.run_id, decision.text + "\n", "champion_decision.txt")
    _log.info("%s", decision.text)
    return RegisteredVersion(
        name=name,
        version=str(version.version),
        uri=f"models:/{name}/{version.version}",
        is_champion=decision.moves,
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
    tracking = replace(recipe.tracking, uri=masked(recipe.tracking.uri))
    files["recipe"].write_text(to_json(replace(recipe, tracking=tracking)))
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
        if version.run_id == run_id and version.tags.get(_DIGEST) == digest:
            return version
    return None


def _upload(
    store: "MlflowClient", handle: RunHandle, folder: Path, *, name: str, digest: str
) -> "ModelVersion":
    # A folder of its own for each version: a later one must not change the files of this one.
    place = f"models/{digest[:12]}"
    store.log_artifacts(handle.run_id, str(folder), place)
    if not store.search_registered_models(f"name='{name}'"):
        store.create_registered_model(name)
    source = f"{store.get_run(handle.run_id).info.artifact_uri}/{place}"
    # Tagged at birth: whoever finds the version after a crash knows what it is.
    return store.create_model_version(name, source, handle.run_id, tags={_DIGEST: digest})


def _decide(
    store: "MlflowClient",
    name: str,
    version: "ModelVersion",
    tags: Mapping[str, str],
    *,
    metric: str,
) -> _Decision:
    """Compare a version with the champion."""
    here = f"{name} version {version.version}"
    value = float(tags.get(f"metric.{metric}", "nan"))
    champion = _champion(store, name)
    if champion is not None and str(champion.version) == str(version.version):
        return _Decision(moves=True, text=f"{here} is the {CHAMPION} already: {metric} {value:.4f}")
    if math.isnan(value):
        return _Decision(
            moves=False, text=f"{here} is not the {CHAMPION}: {metric} was not measured"
        )
    if champion is None:
        return _Decision(moves=True, text=f"{here} is the first {CHAMPION}: {metric} {value:.4f}")
    there = f"version {champion.version}"
    seen, new = champion.tags.get(_EVALUATED_ON, ""), tags[_EVALUATED_ON]
    if seen and new and seen != new:
        return _Decision(
            moves=False,
            text=f"{here} is not the {CHAMPION}: {metric} {value:.4f} was measured on {new}, that "
            f"of {there} on {seen}; they do not compare. To move it by hand: MlflowClient()."
            f"set_registered_model_alias({name!r}, {CHAMPION!r}, {version.version})",
        )
    best = float(champion.tags.get(f"metric.{metric}", "nan"))
    if value > best or math.isnan(best):
        return _Decision(
            moves=True,
            text=f"{here} is the new {CHAMPION}: {metric} {best:.4f} ({there}) -> {value:.4f}",
        )
    return _Decision(
        moves=False,
        text=f"{here} is not the {CHAMPION}: {metric} {value:.4f} is not above the {best:.4f} of "
        f"{there}",
    )


def _champion(store: "MlflowClient", name: str) -> "ModelVersion | None":
    from mlflow.exceptions import MlflowException  # noqa: PLC0415  mlflow is slow to import

    try:
        return store.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            return None
        raise


@contextmanager
def _registry_errors(name: str) -> Iterator[None]:
    try:
        yield
    except RegistryError:
        raise
    except Exception as error:  # MLflow, requests and SQLAlchemy each raise their own
        reason = masked(str(error).strip().partition("\n")[0])[:300]
        raise RegistryError(
            f"{name!r} was not registered: {type(error).__name__}: {reason}. The run and its "
            "checkpoints are kept; start the same run again to register it"
        ) from None


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
