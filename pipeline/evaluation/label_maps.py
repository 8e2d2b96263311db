"""From a batch to label maps at the size of the original images.

An image is looked at as a whole, or through windows that overlap, whose logits are averaged. Of
windows no more logits are held than one row of them covers: what lies above the next row is decided
and let go, so memory does not grow with the height of an image.

K classes, H, W size of an image in the input
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.data.batch import Batch
from pipeline.data.manifest import Category
from pipeline.data.semantic_fields import encode_plane
from pipeline.errors import RecipeError
from pipeline.evaluation.timing import Stopwatch
from pipeline.recipe import EvaluationConfig

LabelMap = NDArray[np.uint8]

WINDOWS_OF_RESIZED = (
    "evaluation.window_px looks at images at their own size, and data.test_size_hw resizes them. "
    "Type: --data.test-size-hw None, or --evaluation.window-px None"
)
"""What is said where both are asked for."""


@torch.inference_mode()
def label_batch(
    model: nn.Module,
    batch: Batch,
    evaluation: EvaluationConfig,
    *,
    watch: Stopwatch | None = None,
) -> list[LabelMap]:
    """Name the class of every pixel of a batch.

    Args:
        model: gives logits (N, K, H, W) in evaluation mode; its own mode is kept.
        batch: on the model's device.
        evaluation: whether, and through which windows.
        watch: times the passes of the model, and the choice of the class.

    Returns:
        For each image its label map (h, w) of class indices, at the size of the original.

    Raises:
        RecipeError: windows are wanted for images that were resized.
    """
    watch = watch or Stopwatch(batch.images.device)
    sizes_hw = [(h, w) for h, w in batch.image_sizes_hw.tolist()]
    originals_hw = [(h, w) for h, w in batch.original_sizes_hw.tolist()]
    if evaluation.window_px is not None and sizes_hw != originals_hw:
        raise RecipeError(WINDOWS_OF_RESIZED)

    def whole() -> list[Tensor]:
        logits: Tensor = model(batch.images, batch.image_sizes_hw)
        return [
            _likeliest(logits[place, :, :height, :width], original)
            for place, ((height, width), original) in enumerate(
                zip(sizes_hw, originals_hw, strict=True)
            )
        ]

    def through_windows() -> list[Tensor]:
        return [
            _through_windows(model, batch.images[place, :, :height, :width], evaluation)
            for place, (height, width) in enumerate(sizes_hw)
        ]

    was_training = model.training
    model.eval()
    try:
        look = whole if evaluation.window_px is None else through_windows
        found = watch.time(look, images=len(sizes_hw))
    finally:
        model.train(was_training)
    return [np.asarray(labels.cpu().numpy(), dtype=np.uint8) for labels in found]


def encode_labels(labels: LabelMap, categories: Sequence[Category]) -> bytes:
    """Write a label map as PNG in the data set's own values: the ids of its categories."""
    values = np.zeros(256, np.uint8)
    values[: len(categories)] = [each.category_id for each in categories]
    return encode_plane(np.asarray(cv2.LUT(labels, values), dtype=np.uint8))


def window_starts(length: int, side: int, *, overlap: float) -> list[int]:
    """Place windows along an edge: from end to end, at equal distances.

    Args:
        length: of the edge.
        side: of a window; at most the length.
        overlap: neighbors share at least this part of a side.
    """
    stride = max(1, math.floor(side * (1 - overlap)))
    gaps = -(-(length - side) // stride)
    return [round(place * (length - side) / gaps) for place in range(gaps + 1)] if gaps else [0]


def _through_windows(model: nn.Module, image: Tensor, evaluation: EvaluationConfig) -> Tensor:
    """Choose the likeliest class of each pixel (H, W) of an image (3, H, W)."""
    height, width = image.shape[-2:]
    side = evaluation.window_px or max(height, width)
    rows, columns = min(side, height), min(side, width)
    tops = window_starts(height, rows, overlap=evaluation.window_overlap)
    lefts = window_starts(width, columns, overlap=evaluation.window_overlap)
    size_hw = torch.tensor([[rows, columns]], device=image.device)
    decided: list[Tensor] = []
    # Every pixel of the strip is divided by its own count, which changes no order of its classes.
    strip: Tensor | None = None
    for top, end in zip(tops, [*tops[1:], height], strict=True):
        for left in lefts:
            window = image[:, top : top + rows, left : left + columns]
            logits: Tensor = model(window[None], size_hw)[0]
            if strip is None:
                strip = logits.new_zeros(len(logits), rows, width)
            strip[:, :, left : left + columns] += logits
        if strip is not None:
            decided.append(strip[:, : end - top].argmax(dim=0).to(torch.uint8))
            strip = F.pad(strip[:, end - top :], (0, 0, 0, end - top))
    return torch.cat(decided)


def _likeliest(logits: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Choose the likeliest class (h, w) of logits (K, H, W) that are resized to (h, w).

    One class after the other, so that resized logits of all classes never exist at once.
    """
    if (logits.shape[-2], logits.shape[-1]) == size_hw:
        return logits.argmax(dim=0).to(torch.uint8)
    best = logits.new_full(size_hw, -torch.inf)
    labels = torch.zeros(size_hw, dtype=torch.uint8, device=logits.device)
    for index, plane in enumerate(logits):
        resized = F.interpolate(
            plane[None, None], size=size_hw, mode="bilinear", align_corners=False
        )[0, 0]
        labels = torch.where(resized > best, index, labels).to(torch.uint8)
        best = torch.maximum(resized, best)
    return labels
