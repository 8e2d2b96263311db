"""What a packaged model says of its inputs and outputs, to MLflow and to who calls it over REST."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data.schema import Task
from pipeline.serving.categories import SCORE_THRESHOLD

if TYPE_CHECKING:
    from mlflow.types import ColSpec, TensorSpec

    Columns = list[ColSpec | TensorSpec]


def declare_signature(folder: Path, task: Task) -> None:
    """Write the signature of a saved model.

    MLflow took one from predict's type hints, the only kind under which it lets a list of arrays
    through. Hints cannot name columns and params, and undeclared params are ignored.

    Args:
        folder: what mlflow.pyfunc.save_model wrote.
        task: the kind of the model.
    """
    from mlflow.models import Model  # noqa: PLC0415  mlflow is slow to import
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema  # noqa: PLC0415

    model = Model.load(str(folder))
    model.signature.inputs = Schema([ColSpec(DataType.binary, "image")])
    model.signature.outputs = Schema(_label_maps() if task == "semantic" else _detections())
    if task == "instance":
        threshold = ParamSpec("score_threshold", DataType.double, SCORE_THRESHOLD)
        model.signature.params = ParamSchema([threshold])
    model.save(str(folder / "MLmodel"))


def _detections() -> "Columns":
    """Those of answers.DETECTION_COLUMNS."""
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
    ]


def _label_maps() -> "Columns":
    """Those of answers.LABEL_COLUMNS."""
    from mlflow.types import ColSpec, DataType  # noqa: PLC0415
    from mlflow.types.schema import Array  # noqa: PLC0415

    return [
        ColSpec(DataType.long, "image_index"),
        ColSpec(DataType.binary, "label_map"),
        ColSpec(Array(DataType.long), "category_ids"),
        ColSpec(Array(DataType.string), "category_names"),
        ColSpec(Array(DataType.double), "pixel_shares"),
    ]
