"""The interface of a model in prediction: registered ones and exported files both have it."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from pipeline.data.manifest import Category
from pipeline.data.photo import Pixels
from pipeline.evaluation.objects import Floats, Objects

Rows = list[dict[str, Any]]

PredictRows = Callable[[Pixels], Rows]
"""Predicts for one photo: a row for each object above the score threshold, or one label map."""


class PhotoModel(Protocol):
    """A loaded model."""

    @property
    def task(self) -> str:
        """Task of the model: instance, semantic or refine."""

    @property
    def categories(self) -> tuple[Category, ...]:
        """Categories in the order of category_index."""

    def predict_photo(self, pixels: Pixels, *, score_threshold: float = 0) -> Rows:
        """Predict for one decoded photo."""

    def find_objects(self, pixels: Pixels, *, scale: float = 1.0) -> Objects:
        """Find objects, with masks as probabilities over their boxes."""

    def find_probs(self, pixels: Pixels, *, scale: float = 1.0) -> Floats:
        """Compute class probabilities (K, H, W)."""


class LoadedModel(NamedTuple):
    """A model, and its name in results."""

    model: PhotoModel
    uri: str
    """models:/NAME/VERSION, or that of an exported file with the file's name."""
