"""Predict with an exported ONNX model: numpy and onnxruntime, without torch, Ray or MLflow.

    predictor = load_onnx("photos.onnx")
    rows = predictor.predict_photo(pixels, score_threshold=0.5)

The rows are those of a registered model (pipeline/serving/predictor.py).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.manifest import Category
from pipeline.data.photo import Pixels
from pipeline.data.test_size import fit_edges
from pipeline.errors import RegistryError, SetupError
from pipeline.evaluation.label_planes import describe_labels
from pipeline.evaluation.objects import Floats, Objects, scale_objects, select_objects, to_rows
from pipeline.serving.exported import INFO_KEY, INPUTS, OUTPUTS, ExportInfo, info_from_json

ONNX_ENDING = ".onnx"


@dataclass(frozen=True, kw_only=True, slots=True)
class OnnxPredictor:
    """An exported model with its description."""

    session: Any
    info: ExportInfo

    @property
    def task(self) -> str:
        """Task of the model: instance or semantic."""
        return self.info.task

    @property
    def categories(self) -> tuple[Category, ...]:
        """Categories in the order of category_index."""
        return self.info.categories

    def predict_photo(self, pixels: Pixels, *, score_threshold: float = 0) -> list[dict[str, Any]]:
        """Predict for one decoded photo; rows as `Predictor.predict_photo` returns them."""
        if self.task == "semantic":
            labels = self.find_probs(pixels).argmax(axis=0).astype(np.uint8)
            return [describe_labels(labels, self.categories)._asdict()]
        objects = self.find_objects(pixels)
        objects = select_objects(objects, objects.scores >= score_threshold)
        return to_rows(objects, self.categories, size_hw=(pixels.shape[0], pixels.shape[1]))

    def find_objects(self, pixels: Pixels, *, scale: float = 1.0) -> Objects:
        """Find the objects of a photo, resized by another factor than usual if one is given."""
        size_hw = (pixels.shape[0], pixels.shape[1])
        input_hw, outputs = self._run(pixels, scale)
        boxes, scores, category_index, valid, probs = (each[0] for each in outputs)
        found = Objects(boxes, scores, category_index, probs)
        return scale_objects(select_objects(found, valid), from_hw=input_hw, to_hw=size_hw)

    def find_probs(self, pixels: Pixels, *, scale: float = 1.0) -> Floats:
        """Compute the probability of each class at each pixel of a photo, (K, H, W)."""
        height, width = pixels.shape[:2]
        (rows, columns), (logits,) = self._run(pixels, scale)
        planes = logits[0, :, :rows, :columns]
        if (rows, columns) != (height, width):
            # Half-pixel centers without antialiasing, as torch's interpolate.
            size_wh = (width, height)
            planes = np.stack(
                [cv2.resize(each, size_wh, interpolation=cv2.INTER_LINEAR) for each in planes]
            )
        planes = np.exp(planes - planes.max(axis=0))
        return np.asarray(planes / planes.sum(axis=0), dtype=np.float32)

    def _run(self, pixels: Pixels, scale: float) -> tuple[tuple[int, int], list[NDArray[Any]]]:
        height, width = input_hw = self._get_input_size((pixels.shape[0], pixels.shape[1]), scale)
        if pixels.shape[:2] != input_hw:
            # Bilinear with antialiasing, as training and evaluation resize.
            resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
            pixels = np.asarray(resized)
        padded_hw = self.info.fixed_hw or tuple(
            side + -side % self.info.pad_multiple for side in input_hw
        )
        images = np.zeros((1, 3, *padded_hw), np.uint8)
        images[0, :, :height, :width] = pixels.transpose(2, 0, 1)
        sizes = np.array([input_hw], np.int64)
        outputs = self.session.run(
            list(OUTPUTS[self.info.task]), dict(zip(INPUTS, (images, sizes), strict=True))
        )
        return input_hw, outputs

    def _get_input_size(self, size_hw: tuple[int, int], scale: float) -> tuple[int, int]:
        info = self.info
        if info.short_edge_px and info.long_edge_px:
            edges = (info.short_edge_px, info.long_edge_px)
            height, width = fit_edges(size_hw, *(max(1, round(scale * px)) for px in edges))
        else:
            height, width = (max(1, round(scale * px)) for px in info.size_hw or size_hw)
        if info.fixed_hw:
            # The graph takes one size: shrink what does not fit.
            fit = min(1.0, info.fixed_hw[0] / height, info.fixed_hw[1] / width)
            height, width = max(1, int(height * fit)), max(1, int(width * fit))
        return height, width


def load_onnx(path: str | Path, *, threads: int = 0) -> OnnxPredictor:
    """Load an exported model.

    Args:
        path: of the ONNX file.
        threads: of onnxruntime; 0 is its own choice.

    Raises:
        RegistryError: the file is missing, damaged or not exported by this package.
        SetupError: onnxruntime is not installed.
    """
    try:
        import onnxruntime  # noqa: PLC0415  optional
    except ModuleNotFoundError as error:
        raise SetupError(
            f"{path} needs onnxruntime, which this environment lacks",
            "type: pip install onnxruntime (or onnxruntime-gpu)",
        ) from error
    if not Path(path).is_file():
        raise RegistryError(
            f"{path} does not exist; write it with: bsm export model models:/NAME@champion "
            f"--format onnx --out {path}"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=onnxruntime.get_available_providers()
        )
    except Exception as error:  # onnxruntime raises many types of its own
        raise RegistryError(
            f"{path} cannot be loaded: {str(error)[:300]}; export it again"
        ) from error
    text = session.get_modelmeta().custom_metadata_map.get(INFO_KEY)
    if text is None:
        raise RegistryError(
            f"{path} has no description of this package, so its inputs and categories are unknown; "
            "write it with: bsm export model"
        )
    return OnnxPredictor(session=session, info=info_from_json(text))
