"""The weights that a run starts from: a file anywhere, a registered version, or published ones.

models:/NAME@champion is resolved when a run first starts, and torchvision:NAME is downloaded then.
The run's folder records what they were and holds a copy that every worker can reach. A run that is
restarted before its first checkpoint starts from the same weights, even if the alias has moved. The
recipe is not changed.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from bsm.configs.models import ModelConfig
from bsm.configs.refine import RefinerConfig
from pipeline import checksums, storage
from pipeline.data.manifest import Category
from pipeline.recipe import Recipe
from pipeline.registry.versions import (
    CATEGORIES_FILE,
    WEIGHTS_FILE,
    download_file,
    find_version,
    is_model_uri,
    read_file,
)
from pipeline.serving.artifacts import categories_from_json
from pipeline.tracking.stores import resolve_tracking_uri
from pipeline.training.checkpoint import check_start_weights
from pipeline.weights.fetch import fetch_weights
from pipeline.weights.names import is_published

_RECORD = "start.json"
_COPY = "start.safetensors"
_BACKBONE = "backbone"
"""Key of the record, and name of the copy, of a backbone's published weights."""

Model = TypeVar("Model", bound=ModelConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class StartWeights:
    """A model config whose weights are resolved."""

    model: ModelConfig
    """With weights that every worker can reach, after `pin`."""
    local_model: ModelConfig
    """With weights on this machine."""
    version: str = ""
    """The registered version, models:/NAME/VERSION, or the name of published weights; "" for other
    weights."""
    categories: tuple[Category, ...] = ()
    """Categories of the registered version."""
    pin: Callable[[], None] = lambda: None
    """Records the version, and copies its weights, in the run's folder."""

    @property
    def continues_categories(self) -> bool:
        """Whether some categories may start at random."""
        return not isinstance(self.model, RefinerConfig) and bool(self.model.weights_categories)

    def name_version(self, text: str) -> str:
        """Replace the name of the weights file by that of the version."""
        return text.replace(self.local_model.weights, self.version) if self.version else text


@contextmanager
def resolve_start_weights(
    model: ModelConfig, recipe: Recipe, *, run_uri: str
) -> Iterator[StartWeights]:
    """Resolve the weights of a model, and keep them on this machine while it is built.

    Args:
        model: the recipe's, without weights if the run resumes from a checkpoint.
        recipe: names the registry.
        run_uri: the run's folder.

    Raises:
        RecipeError: there are no such published weights.
        RegistryError: the version does not exist, or its weights were changed after registration.
        StorageError: a file cannot be read or downloaded.
    """
    copy = storage.join(run_uri, _COPY)
    pinned = replace(model, weights=copy)
    record = _read_record(run_uri)
    if not is_model_uri(model.weights):
        with _resolve_published(model, recipe, record, run_uri=run_uri) as start:
            yield start
    elif record.get("typed") == model.weights:
        with with_local_weights(pinned) as local_model:
            yield StartWeights(model=pinned, local_model=local_model, version=record["version"])
    else:
        registry = resolve_tracking_uri(recipe.tracking.uri, storage_uri=recipe.storage)
        version = find_version(model.weights, registry=registry)
        with download_file(version, WEIGHTS_FILE) as file:

            def pin() -> None:
                storage.write_bytes_atomic(copy, file.read_bytes())
                _write_record(run_uri, {"typed": model.weights, "version": version.uri})

            yield StartWeights(
                model=pinned,
                local_model=replace(model, weights=str(file)),
                version=version.uri,
                categories=categories_from_json(read_file(version, CATEGORIES_FILE).decode()),
                pin=pin,
            )


@contextmanager
def _resolve_published(
    model: ModelConfig, recipe: Recipe, record: dict[str, str], *, run_uri: str
) -> Iterator[StartWeights]:
    """Download published weights of the model and its backbone, unless the run has them already."""
    names = {"typed": model.weights}
    if not model.weights:  # those of the whole model include the backbone's
        names[_BACKBONE] = model.backbone.weights
    names = {key: name for key, name in names.items() if is_published(name)}
    copies, files = {}, {}
    for key, name in names.items():
        kept = record.get(f"{key}_file", "") if record.get(key) == name else ""
        file = None if kept else fetch_weights(name, mirror=recipe.weights_mirror)
        copies[key] = kept or storage.join(run_uri, _name_copy(key, file))
        files[key] = str(file or kept)

    def pin() -> None:
        new = dict(record)
        for key, name in names.items():
            if files[key] != copies[key]:
                storage.write_bytes_atomic(copies[key], storage.read_bytes(files[key]))
            new |= {key: name, f"{key}_file": copies[key]}
        if "typed" in names:
            new["version"] = names["typed"]
        if new != record:
            _write_record(run_uri, new)

    with with_local_weights(_with_weights(model, files)) as local_model:
        yield StartWeights(
            model=_with_weights(model, copies),
            local_model=local_model,
            version=names.get("typed", ""),
            pin=pin,
        )


def _name_copy(key: str, file: Path | None) -> str:
    name = _BACKBONE if key == _BACKBONE else "start"
    return name + (file.suffix if file else "")


def _with_weights(model: ModelConfig, weights: dict[str, str]) -> ModelConfig:
    # Each model config has its own backbone config; replace() returns the same class.
    backbone: Any = replace(model.backbone, weights=weights.get(_BACKBONE, model.backbone.weights))
    return replace(model, weights=weights.get("typed", model.weights), backbone=backbone)


def read_start_version(run_uri: str, *, typed: str = "") -> str:
    """Return the registered version or published weights that a run started from, or "".

    Args:
        run_uri: the run's folder.
        typed: only if the run's recipe named it so, such as models:/NAME@champion; "" for any.
    """
    record = _read_record(run_uri)
    return record.get("version", "") if typed in {"", record.get("typed")} else ""


@contextmanager
def with_local_weights(model: Model) -> Iterator[Model]:
    """Download the weights of a model to this machine while it is built.

    Raises:
        StorageError: a file cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="weights-") as folder:
        # Weights of the whole model include the backbone's.
        weights = "" if model.weights else _download(model.backbone.weights, folder)
        # Each model config has its own backbone config; replace() returns the same class.
        backbone: Any = replace(model.backbone, weights=weights)
        yield replace(model, weights=_download(model.weights, folder), backbone=backbone)


def to_absolute(weights: str) -> str:
    """Make a path to weights absolute."""
    if weights in {"", "timm"} or is_model_uri(weights) or is_published(weights):
        return weights
    return storage.absolute(weights)


def _download(weights: str, folder: str) -> str:
    if weights in {"", "timm"}:
        return weights
    if is_published(weights):
        return str(fetch_weights(weights))
    check_start_weights(weights)
    if storage.is_local(weights):
        return weights
    path = Path(folder) / weights.rpartition("/")[2]
    path.write_bytes(storage.read_bytes(weights))
    return str(path)


def _read_record(run_uri: str) -> dict[str, str]:
    uri = storage.join(run_uri, _RECORD)
    if not storage.exists(uri):
        return {}
    record: dict[str, str] = json.loads(checksums.read_file(uri))
    return record


def _write_record(run_uri: str, record: dict[str, str]) -> None:
    uri = storage.join(run_uri, _RECORD)
    checksums.write_file(uri, json.dumps(record, indent=1).encode())
