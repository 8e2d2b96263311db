"""The weights that a run starts from: a file anywhere, or a registered version, pinned once.

models:/NAME@champion is resolved when a run first starts. The run's folder records the version and
holds a copy of its weights that every worker can reach. A run that is restarted before its first
checkpoint starts from the same weights, even if the alias has moved. The recipe is not changed.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from bsm.configs.models import ModelConfig
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

_RECORD = "start.json"
_COPY = "start.safetensors"

Model = TypeVar("Model", bound=ModelConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class StartWeights:
    """A model config whose weights are resolved."""

    model: ModelConfig
    """With weights that every worker can reach, after `pin`."""
    local_model: ModelConfig
    """With weights on this machine."""
    version: str = ""
    """The registered version, models:/NAME/VERSION; "" for other weights."""
    categories: tuple[Category, ...] = ()
    """Categories of the registered version."""
    pin: Callable[[], None] = lambda: None
    """Records the version, and copies its weights, in the run's folder."""

    def name_version(self, text: str) -> str:
        """Replace the name of the weights file by that of the registered version."""
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
        RegistryError: the version does not exist, or its weights were changed after registration.
        StorageError: a file cannot be read.
    """
    copy = storage.join(run_uri, _COPY)
    pinned = replace(model, weights=copy)
    record = _read_record(run_uri)
    if not is_model_uri(model.weights):
        with with_local_weights(model) as local_model:
            yield StartWeights(model=model, local_model=local_model)
    elif record.get("typed") == model.weights:
        with with_local_weights(pinned) as local_model:
            yield StartWeights(model=pinned, local_model=local_model, version=record["version"])
    else:
        registry = resolve_tracking_uri(recipe.tracking.uri, storage_uri=recipe.storage)
        version = find_version(model.weights, registry=registry)
        with download_file(version, WEIGHTS_FILE) as file:

            def pin() -> None:
                storage.write_bytes_atomic(copy, file.read_bytes())
                record = {"typed": model.weights, "version": version.uri}
                checksums.write_file(
                    storage.join(run_uri, _RECORD), json.dumps(record, indent=1).encode()
                )

            yield StartWeights(
                model=pinned,
                local_model=replace(model, weights=str(file)),
                version=version.uri,
                categories=categories_from_json(read_file(version, CATEGORIES_FILE).decode()),
                pin=pin,
            )


def read_start_version(run_uri: str) -> str:
    """Return the registered version that a run started from, or ""."""
    return _read_record(run_uri).get("version", "")


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
    if weights in {"", "timm"} or is_model_uri(weights):
        return weights
    return storage.absolute(weights)


def _download(weights: str, folder: str) -> str:
    if weights in {"", "timm"}:
        return weights
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
