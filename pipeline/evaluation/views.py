"""Predict one view of a photo, at another size if asked, before masks and labels are decided.

Test-time augmentation merges several views.

K classes, H, W size of the photo
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from bsm.instance import tensors
from pipeline.data import collate_semantic
from pipeline.data.augment import get_test_transform
from pipeline.data.collate import collate_images
from pipeline.data.photo import Pixels
from pipeline.errors import RecipeError
from pipeline.evaluation.objects import Floats, Objects, scale_objects, select_objects
from pipeline.recipe import DataConfig


@torch.inference_mode()
def find_objects(model: nn.Module, pixels: Pixels, config: DataConfig, *, scale: float) -> Objects:
    """Find the objects of a photo.

    Args:
        model: of instances; its mode is restored.
        pixels: (H, W, 3) RGB.
        config: of the model's recipe.
        scale: of the size that the recipe tests at.
    """
    data = _scale_edges(config, scale)
    batch = collate_images([pixels], data).to(_find_device(model))
    with _evaluating(model):
        found: tensors.Detections = model(batch.images, batch.image_sizes_hw)
    arrays: list[Any] = [each[0].cpu().numpy() for each in found]
    boxes, scores, category_index, valid, probs = arrays
    size_hw = (pixels.shape[0], pixels.shape[1])
    transform = get_test_transform(size_hw, data)
    objects = select_objects(Objects(boxes, scores, category_index, probs), valid)
    from_hw = (transform.height_px, transform.width_px)
    return scale_objects(objects, from_hw=from_hw, to_hw=size_hw)


@torch.inference_mode()
def find_probs(
    model: nn.Module,
    pixels: Pixels,
    config: DataConfig,
    *,
    scale: float,
    window_px: int | None = None,
) -> Floats:
    """Compute the probability of each class at each pixel of a photo, (K, H, W).

    Args:
        model: of label maps; its mode is restored.
        pixels: (H, W, 3) RGB.
        config: of the model's recipe.
        scale: of the size that the recipe tests at.
        window_px: side of the recipe's sliding window.

    Raises:
        RecipeError: the recipe has a sliding window, which has labels but no probabilities.
    """
    if window_px is not None and max(pixels.shape[:2]) > window_px:
        raise RecipeError(
            f"the model predicts in windows of {window_px} pixels, whose views cannot be merged; "
            f"add: --tile {window_px}"
        )
    size_hw = config.test_size_hw or (pixels.shape[0], pixels.shape[1])
    height, width = (max(1, round(scale * each)) for each in size_hw)
    data = replace(config, test_size_hw=(height, width))
    batch = collate_semantic.collate_images([pixels], data).to(_find_device(model))
    with _evaluating(model):
        logits = model(batch.images, batch.image_sizes_hw)[:, :, :height, :width]
    size = (pixels.shape[0], pixels.shape[1])
    if (height, width) != size:
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    probs: Floats = logits[0].softmax(dim=0).cpu().numpy().astype(np.float32)
    return probs


def _find_device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _scale_edges(data: DataConfig, scale: float) -> DataConfig:
    if scale == 1.0:
        return data
    short, long = (
        max(1, round(scale * each)) for each in (data.test_short_edge_px, data.long_edge_px)
    )
    return replace(
        data, short_edge_px=(short,), test_short_edge_px=short, long_edge_px=max(long, short)
    )
