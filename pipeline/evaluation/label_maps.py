"""Predict label maps of a batch at the size of the original images.

Inference is on the whole image, or with a sliding window whose overlapping logits are averaged. A
sliding window holds the logits of one row of windows only: pixels above the next row are decided
first, so memory does not grow with the height of an image.

K classes, H, W size of an image in the input
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.data.batch import Batch
from pipeline.errors import RecipeError
from pipeline.evaluation.label_planes import LabelMap, window_starts
from pipeline.evaluation.timing import Stopwatch
from pipeline.recipe import EvaluationConfig

SLIDING_WINDOW_OF_RESIZED = (
    "evaluation.window_px needs images at their original size, and data.test_size_hw resizes them. "
    "Type: --data.test-size-hw None, or --evaluation.window-px None"
)
"""Error text for conflicting settings."""


@torch.inference_mode()
def label_batch(
    model: nn.Module,
    batch: Batch,
    evaluation: EvaluationConfig,
    *,
    watch: Stopwatch | None = None,
) -> list[LabelMap]:
    """Predict the class of every pixel of a batch.

    Args:
        model: returns logits (N, K, H, W) in evaluation mode; its mode is restored.
        batch: on the model's device.
        evaluation: settings of the sliding window, if any.
        watch: times the forward passes and the argmax.

    Returns:
        A label map (h, w) of class indices per image, at the size of the original.

    Raises:
        RecipeError: a sliding window is configured, but the images are resized.
    """
    watch = watch or Stopwatch(batch.images.device)
    sizes_hw = [(h, w) for h, w in batch.image_sizes_hw.tolist()]
    originals_hw = [(h, w) for h, w in batch.original_sizes_hw.tolist()]
    if evaluation.window_px is not None and sizes_hw != originals_hw:
        raise RecipeError(SLIDING_WINDOW_OF_RESIZED)

    def infer_whole() -> list[Tensor]:
        logits: Tensor = model(batch.images, batch.image_sizes_hw)
        return [
            _resize_argmax(each[:, :height, :width], original_hw)
            for each, (height, width), original_hw in zip(
                logits, sizes_hw, originals_hw, strict=True
            )
        ]

    def infer_sliding_window() -> list[Tensor]:
        return [
            _infer_sliding_window(model, image[:, :height, :width], evaluation)
            for image, (height, width) in zip(batch.images, sizes_hw, strict=True)
        ]

    was_training = model.training
    model.eval()
    try:
        infer = infer_whole if evaluation.window_px is None else infer_sliding_window
        found = watch.time(infer, images=len(sizes_hw))
    finally:
        model.train(was_training)
    return [np.asarray(labels.cpu().numpy(), dtype=np.uint8) for labels in found]


def _infer_sliding_window(model: nn.Module, image: Tensor, evaluation: EvaluationConfig) -> Tensor:
    """Predict the class of each pixel (H, W) of an image (3, H, W)."""
    height, width = image.shape[-2:]
    side = evaluation.window_px or max(height, width)
    rows, columns = min(side, height), min(side, width)
    tops = window_starts(height, rows, overlap=evaluation.window_overlap)
    lefts = window_starts(width, columns, overlap=evaluation.window_overlap)
    size_hw = torch.tensor([[rows, columns]], device=image.device)
    decided: list[Tensor] = []
    # The sum of overlapping logits has the same argmax as their mean.
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


def _resize_argmax(logits: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Resize logits (K, H, W) to (h, w), and take the argmax over classes (h, w).

    Resizes one class at a time, since resized logits of all classes may not fit in memory.
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
