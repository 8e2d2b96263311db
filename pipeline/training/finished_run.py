"""Register the model of a finished run from its folder.

Training registers its model itself if the recipe names one. This is for runs without a model name,
or whose registry was unreachable: the folder is enough, even if it was copied elsewhere.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

from bsm.checkpoints.weights import read_weights
from pipeline import checksums, storage
from pipeline.data.manifest import Category
from pipeline.errors import RegistryError
from pipeline.recipe import Recipe, from_json
from pipeline.registry import provenance
from pipeline.registry.provenance import EvaluationRecord, TrainingData
from pipeline.registry.register import RegisteredVersion, register
from pipeline.tracking import runs
from pipeline.training import best_checkpoint, checkpoint, start_weights
from pipeline.training.checkpoint import CheckpointRef

RECIPE_FILE = "recipe.json"
WEIGHTS_FILE = "model.safetensors"
METRICS_FILE = "metrics.json"
TRAINED_ON_FILE = "trained_on.json"


def save_provenance(
    run_uri: str, *, evaluation: EvaluationRecord, training_data: TrainingData
) -> None:
    """Save the evaluation and the training data of a model in the run's folder.

    Raises:
        StorageError: the folder cannot be written.
    """
    for name, value in ((TRAINED_ON_FILE, training_data), (METRICS_FILE, evaluation)):
        checksums.write_file(storage.join(run_uri, name), provenance.to_json(value).encode())


def register_run(
    run_uri: str, *, name: str = "", tracking: str = "", license: str = ""
) -> RegisteredVersion:
    """Register the model of a finished run.

    Args:
        run_uri: the run's folder or URI.
        name: the registered model; "" is the recipe's.
        tracking: the MLflow store; "" is the recipe's.
        license: the license of the weights; "" is the recipe's.

    Raises:
        RegistryError: the run is not finished, or cannot be registered.
        StorageError: a file cannot be read, or was changed after it was written.
    """
    recipe, final = _load_run(run_uri)
    name = name or recipe.tracking.model_name
    if not name:
        raise RegistryError(
            f"{run_uri}: the recipe names no model to register; type: --name MODEL_NAME"
        )
    license = license or recipe.tracking.license
    recipe = replace(recipe, tracking=replace(recipe.tracking, license=license))
    # The run is tracked under the folder's current path and name.
    folder, _, run_name = storage.absolute(run_uri).rpartition("/")
    uri = tracking or recipe.tracking.uri
    tracked = replace(
        recipe, name=run_name, storage=folder, tracking=replace(recipe.tracking, uri=uri)
    )
    info = checkpoint.load_info(final)
    started_from = start_weights.read_start_version(run_uri)
    handle = runs.open_run(
        tracked, data_fingerprint=info["data_fingerprint"], started_from=started_from
    )
    with tempfile.TemporaryDirectory(prefix="register-") as local:
        weights = Path(local) / WEIGHTS_FILE
        weights.write_bytes(_read(run_uri, WEIGHTS_FILE))
        try:
            read_weights(weights)
        except ValueError as error:
            raise RegistryError(
                f"{run_uri}/{WEIGHTS_FILE} is not registered: {error} To write it again from the "
                "last checkpoint, run the command of the run again"
            ) from error
        version = register(
            handle,
            name=name,
            weights_path=weights,
            recipe=recipe,
            categories=[
                Category(category_id=row[0], category_index=row[1], name=row[2])
                for row in info["categories"]
            ],
            evaluation=EvaluationRecord.from_json(_read(run_uri, METRICS_FILE)),
            training_data=TrainingData.from_json(_read(run_uri, TRAINED_ON_FILE)),
            started_from=started_from,
        )
    runs.finish(handle)
    return version


def _load_run(run_uri: str) -> tuple[Recipe, CheckpointRef]:
    """Load the recipe of a run and find its last checkpoint; the run must be finished."""
    if not storage.exists(storage.join(run_uri, RECIPE_FILE)):
        raise RegistryError(
            f"{run_uri} has no {RECIPE_FILE}, so it is not the folder of a run. Use the folder "
            "that the run's log names under results: STORAGE/NAME"
        )
    recipe = from_json(_read(run_uri, RECIPE_FILE).decode())
    latest = checkpoint.find_latest(run_uri)
    files = (WEIGHTS_FILE, METRICS_FILE, TRAINED_ON_FILE)
    missing = [name for name in files if not storage.exists(storage.join(run_uri, name))]
    is_done = latest is not None and best_checkpoint.is_done(run_uri, recipe, step=latest.step)
    if latest is None or not is_done or missing:
        done = latest.step if latest else 0
        without = f", without {', '.join(missing)}" if missing else ""
        raise RegistryError(
            f"{run_uri} is not finished: it is at step {done} of {recipe.optim.steps}{without}. "
            "Run its command again to resume it"
        )
    return recipe, latest


def _read(run_uri: str, name: str) -> bytes:
    return checksums.read_file(storage.join(run_uri, name))
