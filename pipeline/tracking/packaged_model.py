"""What a registered model does when it is pulled: photos in, one row for each detection out.

    model = mlflow.pyfunc.load_model("models:/NAME@champion")
    rows = model.predict(["photo.jpg", encoded_bytes, array], params={"score_threshold": 0.5})

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

from bsm.config import build_model
from bsm.weights import load_weights
from pipeline.data.augment import Pixels
from pipeline.data.collate import collate_images
from pipeline.errors import DatasetError, RegistryError
from pipeline.evaluation.infer import Detection, detect
from pipeline.recipe import from_json, with_trunk_weights
from pipeline.serving.photos import check_photos, read_photo
from pipeline.tracking.model_parts import SCORE_THRESHOLD, categories_from_json

COLUMNS = ("image_index", "category_name", "category_index", "score", "box_xyxy", "rle")
DEVICE_VARIABLE = "BSM_DEVICE"
"""Environment variable that names the device; without it a GPU is taken where there is one."""


class Predictor:
    """The model of a recipe, ready to predict."""

    def load_context(self, context: PythonModelContext) -> None:
        """Build the model from the artifacts of its version."""
        files = {name: Path(path) for name, path in context.artifacts.items()}
        recipe = from_json(files["recipe"].read_text())
        # The weights below are the whole model: the trunk's own start would only be overwritten.
        config = with_trunk_weights(recipe.model, "")
        self._data = recipe.data
        self._paste_bytes = recipe.evaluation.paste_bytes
        self.categories = categories_from_json(files["categories"].read_text())
        self._device = _device()
        self._model = build_model(config)
        try:
            load_weights(self._model, files["weights"])
        except ValueError as error:
            raise RegistryError(
                f"the registered weights do not fit their recipe: {error}"
            ) from error
        self._model.to(self._device).eval()

    def predict(
        self,
        context: PythonModelContext,
        model_input: list[Any],
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Find the objects in photos.

        Args:
            context: given by MLflow; callers of the loaded model leave it out.
            model_input: paths, encoded files as bytes (base64 text over REST), and uint8 arrays
                (H, W, 3) in RGB, in any mixture; or a DataFrame with one column `image` of these.
                Pixels are taken as stored: an EXIF orientation is not applied.
            params: score_threshold, 0.5 without; the model itself keeps nothing below the recipe's
                box_head.score_threshold.

        Returns:
            One row for each detection: image_index, category_name, category_index, score,
            box_xyxy (four floats, in pixels of the photo) and rle (COCO's dict of size and counts).

        Raises:
            DatasetError: some images cannot be read; each is named, and nothing is predicted.
        """
        threshold = _threshold(params or {})
        images = _listed(model_input)
        check_photos(images)
        rows = [
            self._row(detection, image_index)
            for image_index, image in enumerate(images)
            for detection in self._detect(read_photo(image, name=f"image {image_index}"))
            if detection.score >= threshold
        ]
        return pd.DataFrame(rows, columns=list(COLUMNS))

    def _detect(self, pixels: Pixels) -> list[Detection]:
        # One by one: what is found in a photo does not depend on the photos beside it.
        batch = collate_images([pixels], self._data).to(self._device)
        return detect(self._model, batch, paste_bytes=self._paste_bytes)[0]

    def _row(self, found: Detection, image_index: int) -> tuple[Any, ...]:
        rle = {"size": list(found.size_hw), "counts": found.rle_counts.decode()}
        name = self.categories[found.category_index].name
        box = list(found.box_xyxy)
        return image_index, name, found.category_index, found.score, box, rle


class PackagedModel(Predictor, PythonModel):
    """The same as MLflow takes it.

    MLflow wraps a predict that stands in the class itself: of a DataFrame it then passes on the
    first column, whatever its name. An inherited one it leaves alone.
    """


def _device() -> torch.device:
    wanted = os.environ.get(DEVICE_VARIABLE, "")
    return torch.device(wanted or ("cuda" if torch.cuda.is_available() else "cpu"))


def _threshold(params: dict[str, Any]) -> float:
    threshold = float(params.get("score_threshold", SCORE_THRESHOLD))
    if not 0 <= threshold <= 1:
        raise DatasetError(f"params: score_threshold must be in [0, 1], got {threshold}")
    return threshold


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
