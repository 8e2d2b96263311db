"""A finished run as its folder holds it: what was measured, and how it becomes a model version.

Training registers its model itself where the recipe names one. This is for a run that did not, or
whose registry was away: the folder alone is enough, wherever it was copied to.
"""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

from pipeline import storage
from pipeline.data.manifest import Category
from pipeline.errors import RegistryError
from pipeline.recipe import Recipe, from_json
from pipeline.registry import provenance
from pipeline.registry.provenance import Measured, TrainedOn
from pipeline.registry.register import RegisteredVersion, register
from pipeline.tracking import runs
from pipeline.training import checkpoint, start_weights
from pipeline.training.checkpoint import Place

RECIPE_FILE = "recipe.json"
WEIGHTS_FILE = "model.safetensors"
METRICS_FILE = "metrics.json"
TRAINED_ON_FILE = "trained_on.json"


def keep_evidence(run_uri: str, *, measured: Measured, trained_on: TrainedOn) -> None:
    """Put what stands behind a model beside its checkpoints.

    Raises:
        StorageError: the folder cannot be written.
    """
    for name, value in ((TRAINED_ON_FILE, trained_on), (METRICS_FILE, measured)):
        storage.write_bytes_atomic(storage.join(run_uri, name), provenance.to_json(value).encode())


def register_run(
    run_uri: str, *, name: str = "", tracking: str = "", license: str = ""
) -> RegisteredVersion:
    """Register the model of a finished run.

    Args:
        run_uri: the run's folder or URI.
        name: the registered model; the one that the recipe names without it.
        tracking: where to register; what the recipe says without it.
        license: under which the weights may be used; what the recipe says without it.

    Raises:
        RegistryError: the run is not finished, or cannot be registered.
        StorageError: the folder cannot be read.
    """
    recipe, place = _checked(run_uri)
    said = recipe.tracking
    name = name or said.model_name
    if not name:
        raise RegistryError(
            f"{run_uri}: the recipe names no model to register; type: --name MODEL_NAME"
        )
    recipe = replace(recipe, tracking=replace(said, license=license or said.license))
    # The run is tracked where the folder is now, and under the name that it has there.
    folder, _, run_name = storage.absolute(run_uri).rpartition("/")
    tracked = replace(
        recipe,
        name=run_name,
        storage=folder,
        tracking=replace(recipe.tracking, uri=tracking or said.uri),
    )
    mark = json.loads(storage.read_bytes(storage.join(place.uri, "checkpoint.json")))
    start = start_weights.started_from(run_uri)
    handle = runs.open_run(
        tracked,
        data_fingerprint=mark["data_fingerprint"],
        started_from=start,
    )
    with tempfile.TemporaryDirectory(prefix="register-") as local:
        weights = Path(local) / WEIGHTS_FILE
        weights.write_bytes(storage.read_bytes(storage.join(run_uri, WEIGHTS_FILE)))
        version = register(
            handle,
            name=name,
            weights_path=weights,
            recipe=recipe,
            categories=[
                Category(category_id=row[0], category_index=row[1], name=row[2])
                for row in mark["categories"]
            ],
            measured=Measured.from_json(storage.read_bytes(storage.join(run_uri, METRICS_FILE))),
            trained_on=TrainedOn.from_json(
                storage.read_bytes(storage.join(run_uri, TRAINED_ON_FILE))
            ),
            started_from=start,
        )
    runs.finish(handle)
    return version


def _checked(run_uri: str) -> tuple[Recipe, Place]:
    if not storage.exists(storage.join(run_uri, RECIPE_FILE)):
        raise RegistryError(
            f"{run_uri} has no {RECIPE_FILE}: it is no folder of a run. Name the folder that its "
            "log calls results: STORAGE/NAME"
        )
    recipe = from_json(storage.read_bytes(storage.join(run_uri, RECIPE_FILE)).decode())
    place = checkpoint.find_latest(run_uri)
    files = (WEIGHTS_FILE, METRICS_FILE, TRAINED_ON_FILE)
    missing = [name for name in files if not storage.exists(storage.join(run_uri, name))]
    if place is None or place.step < recipe.optim.steps or missing:
        done = place.step if place else 0
        lacks = f", and lacks {', '.join(missing)}" if missing else ""
        raise RegistryError(
            f"{run_uri} is not finished: it is at step {done} of {recipe.optim.steps}{lacks}. "
            "Start its command again; it goes on from there"
        )
    return recipe, place
