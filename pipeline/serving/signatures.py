"""Declare inputs, outputs and params of a packaged model to MLflow and its REST clients."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data.schema import Task
from pipeline.serving.artifacts import SCORE_THRESHOLD

if TYPE_CHECKING:
    from mlflow.types import ColSpec, TensorSpec

    Columns = list[ColSpec | TensorSpec]


def declare_signature(folder: Path, task: Task) -> None:
    """Write the signature of a saved model.

    MLflow has inferred one from predict's type hints, the only kind that accepts a list of arrays.
    Hints cannot name columns or params, and MLflow ignores undeclared params.

    Args:
        folder: model folder that mlflow.pyfunc.save_model wrote.
        task: task of the model.
    """
    from mlflow.models import Model  # noqa: PLC0415  mlflow is slow to import
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema  # noqa: PLC0415

    model = Model.load(str(folder))
    model.signature.inputs = Schema([ColSpec(DataType.binary, "image")])
    model.signature.outputs = Schema(
        _label_columns() if task == "semantic" else _detection_columns()
    )
    if task == "instance":
        threshold = ParamSpec("score_threshold", DataType.double, SCORE_THRESHOLD)
        model.signature.params = ParamSchema([threshold])
    model.save(str(folder / "MLmodel"))


def _detection_columns() -> "Columns":
    """Type predictor.DETECTION_COLUMNS."""
    from mlflow.types import ColSpec, DataType  # noqa: PLC0415
    from mlflow.types.schema import Array, Object, Property  # noqa: PLC0415

    size, counts = Property("size", Array(DataType.long)), Property("counts", DataType.string)
    return [
        ColSpec(DataType.long, "image_index"),
        ColSpec(DataType.string, "category_name"),
        ColSpec(DataType.long, "category_index"),
        ColSpec(DataType.double, "score"),
        ColSpec(Array(DataType.double), "box_xyxy"),
        ColSpec(Object([size, counts]), "rle"),
        ColSpec(DataType.string, "error"),
    ]


def _label_columns() -> "Columns":
    """Type predictor.LABEL_COLUMNS."""
    from mlflow.types import ColSpec, DataType  # noqa: PLC0415
    from mlflow.types.schema import Array  # noqa: PLC0415

    return [
        ColSpec(DataType.long, "image_index"),
        ColSpec(DataType.binary, "label_map"),
        ColSpec(Array(DataType.long), "category_ids"),
        ColSpec(Array(DataType.string), "category_names"),
        ColSpec(Array(DataType.double), "pixel_shares"),
        ColSpec(DataType.string, "error"),
    ]
