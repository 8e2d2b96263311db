"""The weights that a run starts from: a file anywhere, or a registered version, pinned once.

What models:/NAME@champion means is looked up when a run first starts. The version is noted in the
run's folder, with a copy of its weights that every worker reaches: a run that is started again
before its first checkpoint starts from the same weights, whatever became of the alias. The recipe
stays as it was typed.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pipeline import storage
from pipeline.data.manifest import Category
from pipeline.errors import RegistryError
from pipeline.recipe import AnyModel, Recipe
from pipeline.registry.versions import (
    CATEGORIES_FILE,
    DIGEST_TAG,
    WEIGHTS_FILE,
    Version,
    downloaded,
    find,
    is_model_uri,
    read_file,
)
from pipeline.serving.categories import categories_from_json
from pipeline.tracking.stores import tracking_uri

_NOTE = "start.json"
_COPY = "start.safetensors"

Model = TypeVar("Model", bound=AnyModel)


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """Where a model starts."""

    model: AnyModel
    """With weights that every worker reaches, once they are kept."""
    here: AnyModel
    """The same with files of this machine."""
    version: str = ""
    """The registered version, models:/NAME/VERSION; "" where it is none."""
    categories: tuple[Category, ...] = ()
    """That the version knows."""
    keep: Callable[[], None] = lambda: None
    """Notes the version in the run's folder."""

    def named(self, text: str) -> str:
        """Call a version by its name in a text that names the file."""
        return text.replace(self.here.weights, self.version) if self.version else text


@contextmanager
def starting(model: AnyModel, recipe: Recipe, *, run_uri: str) -> Iterator[Start]:
    """Look up the weights of a model, and have them on this machine while it is built.

    Args:
        model: the recipe's, without weights where a checkpoint holds them.
        recipe: says where the registry is.
        run_uri: the run's folder.

    Raises:
        RegistryError: there is no such version, or its weights are not those that were registered.
        StorageError: a file cannot be read.
    """
    copy = storage.join(run_uri, _COPY)
    pinned = replace(model, weights=copy)
    note = _note(run_uri)
    if not is_model_uri(model.weights):
        with at_hand(model) as here:
            yield Start(model=model, here=here)
    elif note.get("typed") == model.weights:
        with at_hand(pinned) as here:
            yield Start(model=pinned, here=here, version=note["version"])
    else:
        registry = tracking_uri(recipe.tracking.uri, storage_uri=recipe.storage)
        version = find(model.weights, registry=registry)
        with downloaded(version, WEIGHTS_FILE) as file:
            _check_digest(version, file)

            def keep() -> None:
                storage.write_bytes_atomic(copy, file.read_bytes())
                said = {"typed": model.weights, "version": version.uri}
                storage.write_bytes_atomic(
                    storage.join(run_uri, _NOTE), json.dumps(said, indent=1).encode()
                )

            yield Start(
                model=pinned,
                here=replace(model, weights=str(file)),
                version=version.uri,
                categories=categories_from_json(read_file(version, CATEGORIES_FILE).decode()),
                keep=keep,
            )


def started_from(run_uri: str) -> str:
    """Give the registered version that a run started from; "" for none."""
    return _note(run_uri).get("version", "")


@contextmanager
def at_hand(model: Model) -> Iterator[Model]:
    """Have the weights of a model on this machine while it is built.

    Raises:
        StorageError: a file cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="weights-") as folder:
        # The trunk's own are not read where the whole model has some.
        trunk = "" if model.weights else _local(model.backbone.weights, folder)
        # Each kind of model has a kind of trunk of its own, and gets the same one back.
        backbone: Any = replace(model.backbone, weights=trunk)
        yield replace(model, weights=_local(model.weights, folder), backbone=backbone)


def absolute_weights(weights: str) -> str:
    """Make a path of weights hold in every working directory."""
    if weights in {"", "timm"} or is_model_uri(weights):
        return weights
    return storage.absolute(weights)


def _local(weights: str, folder: str) -> str:
    if weights in {"", "timm"} or storage.is_local(weights):
        return weights
    path = Path(folder) / weights.rpartition("/")[2]
    path.write_bytes(storage.read_bytes(weights))
    return str(path)


def _note(run_uri: str) -> dict[str, str]:
    place = storage.join(run_uri, _NOTE)
    if not storage.exists(place):
        return {}
    note: dict[str, str] = json.loads(storage.read_bytes(place))
    return note


def _check_digest(version: Version, file: Path) -> None:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    registered = version.tags.get(DIGEST_TAG, "")
    if registered and registered != digest:
        raise RegistryError(
            f"{version.uri}: its weights are not those that were registered (SHA-256 {digest}, "
            f"registered {registered}): they were changed in the artifact store. Take another "
            "version, or register the run again"
        )
