"""Predict a photo in several views, as rows."""

from collections.abc import Sequence

import numpy as np

from pipeline.data.photo import Pixels
from pipeline.evaluation.label_planes import describe_labels
from pipeline.evaluation.merged_views import find_mean_probs, find_merged_objects
from pipeline.evaluation.objects import select_objects, to_rows
from pipeline.prediction.photo_model import PhotoModel, Rows


def predict_views(
    model: PhotoModel,
    pixels: Pixels,
    *,
    scales: Sequence[float],
    flip: bool,
    score_threshold: float,
) -> Rows:
    """Predict the views of a photo, and merge them.

    Args:
        model: of instances or label maps.
        pixels: (H, W, 3) RGB.
        scales: factors of the model's own test size.
        flip: also predict the mirror image at each scale.
        score_threshold: of merged objects.
    """
    if model.task == "semantic":
        probs = find_mean_probs(
            lambda view, scale: model.find_probs(view, scale=scale),
            pixels,
            scales=scales,
            flip=flip,
        )
        labels = probs.argmax(axis=0).astype(np.uint8)
        return [describe_labels(labels, model.categories)._asdict()]
    merged = find_merged_objects(
        lambda view, scale: model.find_objects(view, scale=scale), pixels, scales=scales, flip=flip
    )
    merged = select_objects(merged, merged.scores >= score_threshold)
    return to_rows(merged, model.categories, size_hw=(pixels.shape[0], pixels.shape[1]))
