"""Declare inputs, outputs and params of a packaged model to MLflow and its REST clients."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.evaluation.mask_refinement import MAX_CHANGE
from pipeline.recipe import ModelTask
from pipeline.serving.artifacts import SCORE_THRESHOLD

if TYPE_CHECKING:
    from mlflow.types import ColSpec, TensorSpec

    Columns = list[ColSpec | TensorSpec]


def declare_signature(folder: Path, task: ModelTask) -> None:
    """Write the signature of a saved model.

    MLflow has inferred one from predict's type hints, the only kind that accepts a list of arrays.
    Hints cannot name columns or params, and MLflow ignores undeclared params.

    Args:
        folder: model folder that mlflow.pyfunc.save_model wrote.
        task: task of the model.
    """
    from mlflow.models import Model  # noqa: PLC0415  mlflow is slow to import
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema  # noqa: PLC0415
    from mlflow.types.schema import AnyType, Array  # noqa: PLC0415

    model = Model.load(str(folder))
    any_type = AnyType()  # type: ignore[no-untyped-call]
    columns = {
        "instance": _detection_columns,
        "semantic": _label_columns,
        "refine": _refinement_columns,
    }
    params = {
        "instance": ("score_threshold", SCORE_THRESHOLD),
        "refine": ("max_change", MAX_CHANGE),
    }
    masks = [ColSpec(Array(any_type), "masks")] if task == "refine" else []
    model.signature.inputs = Schema([ColSpec(DataType.binary, "image"), *masks])
    model.signature.outputs = Schema(columns[task]())
    if task in params:
        name, default = params[task]
        model.signature.params = ParamSchema([ParamSpec(name, DataType.double, default)])
    model.save(str(folder / "MLmodel"))


def _detection_columns() -> "Columns":
    """Type predictor.DETECTION_COLUMNS."""
    from mlflow.types import ColSpec, DataType  # noqa: PLC0415
    from mlflow.types.schema import Array  # noqa: PLC0415

    return [
        ColSpec(DataType.long, "image_index"),
        ColSpec(DataType.string, "category_name"),
        ColSpec(DataType.long, "category_index"),
        ColSpec(DataType.double, "score"),
        ColSpec(Array(DataType.double), "box_xyxy"),
        _rle_column(),
        ColSpec(DataType.string, "error"),
    ]


def _refinement_columns() -> "Columns":
    """Type refinements.REFINEMENT_COLUMNS."""
    from mlflow.types import ColSpec, DataType  # noqa: PLC0415

    return [
        ColSpec(DataType.long, "image_index"),
        ColSpec(DataType.long, "mask_index"),
        _rle_column(),
        ColSpec(DataType.double, "change"),
        ColSpec(DataType.double, "confidence"),
        ColSpec(DataType.boolean, "kept"),
        ColSpec(DataType.string, "error"),
    ]


def _rle_column() -> "ColSpec":
    from mlflow.types import ColSpec, DataType  # noqa: PLC0415
    from mlflow.types.schema import Array, Object, Property  # noqa: PLC0415

    size, counts = Property("size", Array(DataType.long)), Property("counts", DataType.string)
    return ColSpec(Object([size, counts]), "rle")


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
