"""What a registered model does when it is pulled: photos in, rows out.

    model = mlflow.pyfunc.load_model("models:/NAME@champion")
    rows = model.predict(["photo.jpg", encoded_bytes, array], params={"score_threshold": 0.5})

An instance model gives a row for each detection, a semantic one for each photo; answers.py says
what is in them.

MLflow stores this file as the model's code ("models from code"), with bsm/ and pipeline/ beside it;
the weights are safetensors. Nothing is unpickled, and Ray is not needed.
"""

import os
from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped]
import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from bsm.build import build_model
from bsm.checkpoints.weights import load_weights
from bsm.configs.models import without_weights
from pipeline.errors import DatasetError, RegistryError
from pipeline.recipe import from_json
from pipeline.serving.categories import categories_from_json
from pipeline.serving.photos import check_photos, read_photo
from pipeline.serving.predictions import (
    DETECTION_COLUMNS,
    LABEL_COLUMNS,
    Served,
    detection_rows,
    label_rows,
)

DEVICE_VARIABLE = "BSM_DEVICE"
"""Environment variable that names the device; without it a GPU is taken where there is one."""


class Predictor:
    """The model of a recipe, ready to predict."""

    def load_context(self, context: PythonModelContext) -> None:
        """Build the model from the artifacts of its version."""
        files = {name: Path(path) for name, path in context.artifacts.items()}
        recipe = from_json(files["recipe"].read_text())
        # The weights below are the whole model: its start would only be overwritten.
        config = without_weights(recipe.model)
        self.task = recipe.model.task
        self.categories = categories_from_json(files["categories"].read_text())
        model: torch.nn.Module = build_model(config)
        try:
            load_weights(model, files["weights"])
        except ValueError as error:
            raise RegistryError(
                f"the registered weights do not fit their recipe: {error}"
            ) from error
        device = _device()
        self._served = Served(model.to(device).eval(), recipe, self.categories, device)

    def predict(
        self,
        context: PythonModelContext,
        model_input: list[Any],
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Find the objects in photos, or name the class of each of their pixels.

        Args:
            context: given by MLflow; callers of the loaded model leave it out.
            model_input: paths, encoded files as bytes (base64 text over REST), and uint8 arrays
                (H, W, 3) in RGB, in any mixture; or a DataFrame with one column `image` of these.
                Pixels are taken as stored: an EXIF orientation is not applied.
            params: of an instance model score_threshold, 0.5 without; the model itself keeps
                nothing below the recipe's box_head.score_threshold.

        Returns:
            Rows with the columns answers.DETECTION_COLUMNS or answers.LABEL_COLUMNS.

        Raises:
            DatasetError: some images cannot be read; each is named, and nothing is predicted.
        """
        images = _listed(model_input)
        check_photos(images)
        semantic = self.task == "semantic"
        rows_of = label_rows if semantic else detection_rows
        rows = [
            row
            for index, image in enumerate(images)
            for row in rows_of(
                self._served,
                read_photo(image, name=f"image {index}"),
                image_index=index,
                params=params or {},
            )
        ]
        return pd.DataFrame(rows, columns=list(LABEL_COLUMNS if semantic else DETECTION_COLUMNS))


class PackagedModel(Predictor, PythonModel):
    """The same as MLflow takes it.

    MLflow wraps a predict that stands in the class itself: of a DataFrame it then passes on the
    first column, whatever its name. An inherited one it leaves alone.
    """


def _device() -> torch.device:
    wanted = os.environ.get(DEVICE_VARIABLE, "")
    return torch.device(wanted or ("cuda" if torch.cuda.is_available() else "cpu"))


def _listed(model_input: object) -> list[Any]:
    if isinstance(model_input, pd.DataFrame):
        if "image" not in model_input.columns:
            columns = ", ".join(map(str, model_input.columns)) or "none"
            raise DatasetError(f"the DataFrame has no column 'image'; its columns: {columns}")
        return list(model_input["image"])
    if isinstance(model_input, list | tuple):
        return list(model_input)
    raise DatasetError(
        f"predict takes a list of images or a DataFrame with a column 'image', got a "
        f"{type(model_input).__name__}; for one image: predict([image])"
    )


set_model(PackagedModel())
