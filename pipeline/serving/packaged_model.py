"""Adapt a registered model to MLflow: photos in, rows out.

    model = mlflow.pyfunc.load_model("models:/NAME@champion")
    rows = model.predict(["photo.jpg", encoded_bytes, array], params={"score_threshold": 0.5})

MLflow stores this file as the model's code ("models from code") beside bsm/ and pipeline/; the
weights are safetensors. Nothing is unpickled, and Ray is not needed. predictor.py documents inputs
and rows.
"""

from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped]
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

try:
    from pipeline.serving.predictor import load_predictor
except ImportError as error:
    if (error.name or "").partition(".")[0] not in {"bsm", "pipeline"}:
        raise
    raise ImportError(
        f"this process has already imported another version of bsm and pipeline than the one "
        f"stored with the model ({error}). Load the model in a process that has not imported them, "
        "or with pipeline.registry.predict.load_registered_model"
    ) from error


class _Adapter:
    def load_context(self, context: PythonModelContext) -> None:
        """Build the model from the artifacts of its version."""
        self.predictor = load_predictor(Path(context.artifacts["recipe"]).parent)

    def predict(
        self,
        context: PythonModelContext,
        model_input: list[Any],
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Predict for photos; see `Predictor.predict`. MLflow passes the context."""
        return self.predictor.predict(model_input, params)


class PackagedModel(_Adapter, PythonModel):
    """The model as MLflow loads it.

    MLflow wraps a predict that is defined in the class itself and passes it the first column of a
    DataFrame, whatever its name. It leaves an inherited one alone.
    """


set_model(PackagedModel())
