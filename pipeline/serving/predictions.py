"""What a registered model answers with, by its kind: a row for each detection, or for each image.

Photos are looked at one by one: what is found in one does not depend on those beside it.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from pipeline.data import collate_semantic
from pipeline.data.augment import Pixels
from pipeline.data.collate import collate_images
from pipeline.data.manifest import Category
from pipeline.errors import DatasetError
from pipeline.evaluation.infer import detect
from pipeline.evaluation.label_maps import encode_labels, label_batch
from pipeline.recipe import Recipe
from pipeline.serving.categories import SCORE_THRESHOLD


class Served(NamedTuple):
    """A model that answers."""

    model: nn.Module
    """In evaluation mode, on its device."""
    recipe: Recipe
    categories: tuple[Category, ...]
    device: torch.device


DETECTION_COLUMNS = (
    "image_index",
    "category_name",
    "category_index",
    "score",
    "box_xyxy",
    "rle",
)
"""Of an instance model. box_xyxy are four floats, in pixels of the photo; rle is COCO's dict of
size and counts."""


def detection_rows(
    served: Served, pixels: Pixels, *, image_index: int, params: Mapping[str, Any]
) -> Iterator[tuple[Any, ...]]:
    """Find the objects in a photo, best first.

    Args:
        served: an instance model.
        pixels: (H, W, 3) RGB.
        image_index: place of the photo among those asked for.
        params: score_threshold, 0.5 without.

    Raises:
        DatasetError: the threshold is none.
    """
    threshold = float(params.get("score_threshold", SCORE_THRESHOLD))
    if not 0 <= threshold <= 1:
        raise DatasetError(f"params: score_threshold must be in [0, 1], got {threshold}")
    batch = collate_images([pixels], served.recipe.data).to(served.device)
    (found,) = detect(served.model, batch, paste_bytes=served.recipe.evaluation.paste_bytes)
    for each in found:
        if each.score >= threshold:
            name = served.categories[each.category_index].name
            rle = {"size": list(each.size_hw), "counts": each.rle_counts.decode()}
            box = list(each.box_xyxy)
            yield image_index, name, each.category_index, each.score, box, rle


LABEL_COLUMNS = ("image_index", "label_map", "category_ids", "category_names", "pixel_shares")
"""Of a semantic model. label_map is a PNG of the photo's size, 8 bits a pixel, whose values are
category ids: those of the data set's own label files. The lists hold the categories that are in it,
those of most pixels first, and their parts of the image."""


def label_rows(
    served: Served,
    pixels: Pixels,
    *,
    image_index: int,
    params: Mapping[str, Any],
) -> Iterator[tuple[Any, ...]]:
    """Name the class of every pixel of a photo, in one row.

    Args:
        served: a semantic model.
        pixels: (H, W, 3) RGB.
        image_index: place of the photo among those asked for.
        params: ignored.
    """
    batch = collate_semantic.collate_images([pixels], served.recipe.data).to(served.device)
    (labels,) = label_batch(served.model, batch, served.recipe.evaluation)
    counts = np.bincount(labels.ravel(), minlength=len(served.categories))
    by_share = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)].tolist()
    there = [served.categories[index] for index in by_share]
    yield (
        image_index,
        encode_labels(labels, served.categories),
        [each.category_id for each in there],
        [each.name for each in there],
        (counts[by_share] / labels.size).tolist(),
    )
