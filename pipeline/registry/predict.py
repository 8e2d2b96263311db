"""Load registered models into this process."""

from typing import NamedTuple

from bsm.refine.refiner import Refiner
from pipeline.errors import RegistryError
from pipeline.registry.versions import (
    ARTIFACTS_FOLDER,
    Version,
    download_file,
    find_version,
    is_model_uri,
)
from pipeline.serving.predictor import Predictor, load_predictor
from pipeline.tracking.stores import resolve_tracking_uri


class RegisteredModel(NamedTuple):
    """A registered version, loaded into this process."""

    model: Predictor
    uri: str
    """models:/NAME/VERSION."""


class RegisteredRefiner(NamedTuple):
    """A registered refiner, loaded into this process."""

    model: Refiner
    uri: str
    """models:/NAME/VERSION."""


def load_registered_model(
    model_uri: str, *, tracking: str = "", storage_uri: str = "runs", device: str = ""
) -> RegisteredModel:
    """Load a registered model with the code of this package.

    mlflow.pyfunc.load_model uses the code stored with the model instead, which may be another
    version that cannot be imported beside this package.

    Args:
        model_uri: models:/NAME@champion or models:/NAME/VERSION.
        tracking: URI of the registry; "" means the embedded store under storage_uri.
        storage_uri: as a recipe's storage.
        device: of the model; see `load_predictor`.

    Raises:
        RecipeError: this package cannot read the recipe of the model.
        RegistryError: there is no such model, or it cannot be loaded.
        StorageError: there is no such registry.
    """
    if not is_model_uri(model_uri):
        raise RegistryError(
            f"model {model_uri!r} must be models:/NAME@ALIAS or models:/NAME/VERSION"
        )
    version = find_version(
        model_uri, registry=resolve_tracking_uri(tracking, storage_uri=storage_uri)
    )
    return RegisteredModel(load_version(version, device=device), version.uri)


def load_version(version: Version, *, device: str = "") -> Predictor:
    """Load the files of a registered version into this process; see `load_predictor`."""
    with download_file(version, ARTIFACTS_FOLDER) as folder:
        try:
            return load_predictor(folder, device=device)
        except RegistryError as error:
            raise RegistryError(f"{version.uri}: {error}") from error


def load_refiner(
    model_uri: str, *, tracking: str = "", storage_uri: str = "runs"
) -> RegisteredRefiner:
    """Load a registered refiner with the code of this package.

    Raises:
        RegistryError: see `load_registered_model`, or it is not a refiner.
    """
    registered = load_registered_model(model_uri, tracking=tracking, storage_uri=storage_uri)
    if not isinstance(registered.model.model, Refiner):
        raise RegistryError(
            f"{registered.uri} is a model of task {registered.model.task}, not a refiner; train "
            "one with: python jobs/refine_coco.py"
        )
    return RegisteredRefiner(registered.model.model, registered.uri)
