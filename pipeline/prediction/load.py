"""Load a model by its name in the registry, or from the file of an exported one."""

from pathlib import Path

from pipeline.errors import RegistryError
from pipeline.prediction.photo_model import LoadedModel
from pipeline.serving.onnx_predictor import ONNX_ENDING, load_onnx


def load_model(name: str, *, tracking: str = "") -> LoadedModel:
    """Load a model.

    Args:
        name: models:/NAME@champion, models:/NAME/VERSION, or an ONNX file.
        tracking: URI of the registry; "" means the embedded store.

    Raises:
        RegistryError: there is no such model, or it cannot be loaded.
        SetupError: onnxruntime, which an ONNX file needs, is not installed.
        StorageError: there is no such registry.
    """
    if Path(name).suffix == ONNX_ENDING:
        predictor = load_onnx(name)
        return LoadedModel(predictor, predictor.info.model)
    if Path(name).suffix == ".pt2":
        raise RegistryError(
            f"{name} is a torch.export archive, for programs of your own (docs/export.md); predict "
            "with the registered model, or with a file of: bsm export model --format onnx"
        )
    from pipeline.registry.predict import (  # noqa: PLC0415  it imports torch and mlflow
        load_registered_model,
    )

    registered = load_registered_model(name, tracking=tracking)
    return LoadedModel(registered.model, registered.uri)
