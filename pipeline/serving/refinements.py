"""Refine the masks of photos with a registered refiner: a row for each mask, in the given order.

rows = predictor.predict([{"image": "photo.jpg", "masks": [rle, png_bytes]}])
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
from pycocotools import mask as mask_api

from bsm.refine.refiner import Refiner
from pipeline.data.label_png import LabelError, read_header, read_values
from pipeline.data.photo import Pixels
from pipeline.errors import DatasetError
from pipeline.evaluation.mask_refinement import refine_rles
from pipeline.evaluation.rle import Rle, SegmentationError, to_rle
from pipeline.serving.photos import read_bytes
from pipeline.text import format_count

REFINEMENT_COLUMNS = (
    "image_index",
    "mask_index",
    "rle",
    "change",
    "confidence",
    "kept",
    "error",
)
"""Columns of a refiner. rle is COCO's dict of size and counts, change is 1 - IoU of the refiner's
mask with the given one, and kept says that this is too much, so that rle is the given mask. error
is "", or says why the masks of a photo were not refined; its row has nothing else."""


class Request(NamedTuple):
    """A photo with the masks to refine."""

    image: Any
    masks: Any


def to_requests(given: object) -> list[Request]:
    """Convert a list of {"image": photo, "masks": list}, or a DataFrame with these two columns.

    Photos are as for other models. A mask is COCO RLE, a list of polygons, an 8-bit or 1-bit PNG
    (bytes, base64 text or a path) or an array (H, W), of the photo's size; every value but 0 is the
    object.

    Raises:
        DatasetError: the requests have another form.
    """
    if isinstance(given, pd.DataFrame):
        given = given.to_dict("records")
    wanted = (
        'a refiner takes a list of {"image": photo, "masks": list of masks}, or a DataFrame with '
        "the columns image and masks"
    )
    if not isinstance(given, list | tuple):
        raise DatasetError(f"{wanted}, got a {type(given).__name__}")
    for index, each in enumerate(given):
        if not isinstance(each, Mapping) or not {"image", "masks"} <= each.keys():
            keys = f" with {', '.join(map(str, each))}" if isinstance(each, Mapping) else ""
            raise DatasetError(f"{wanted}; entry {index} is a {type(each).__name__}{keys}")
    return [Request(each["image"], each["masks"]) for each in given]


def refine_photo(
    model: Refiner, pixels: Pixels, masks: object, *, name: str, max_change: float, mask_bytes: int
) -> Iterator[tuple[Any, ...]]:
    """Refine the masks of a photo, and yield a row for each.

    Args:
        model: in evaluation mode.
        pixels: (H, W, 3) RGB.
        masks: as `to_requests` takes them.
        name: of the photo in error messages.
        max_change: masks that would change more are kept.
        mask_bytes: memory limit in bytes for dense masks.

    Raises:
        DatasetError: masks cannot be read; the message names each of them.
    """
    rles = read_masks(masks, pixels.shape[:2], name=name)
    refined = refine_rles(model, pixels, rles, max_change=max_change, mask_bytes=mask_bytes)
    for number, each in enumerate(refined):
        rle = {"size": list(each.rle["size"]), "counts": each.rle["counts"].decode()}
        yield number, rle, each.change, each.confidence, each.kept


def read_masks(masks: object, size_hw: tuple[int, int], *, name: str) -> list[Rle]:
    """Read the masks of a photo.

    Args:
        masks: as `to_requests` takes them.
        size_hw: of the photo.
        name: of the photo in error messages.

    Raises:
        DatasetError: masks cannot be read; the message names each of them.
    """
    if not isinstance(masks, list | tuple | np.ndarray):
        raise DatasetError(f"{name}: masks is a {type(masks).__name__}, not a list")
    rles, problems = [], []
    for number, mask in enumerate(masks):
        try:
            rles.append(_read_mask(mask, size_hw, name=f"mask {number}"))
        except SegmentationError as error:
            problems.append(f"mask {number}: {error}")
        except DatasetError as error:
            problems.append(str(error))
    if problems:
        raise DatasetError(
            f"{name}: {format_count(len(problems), 'mask')} cannot be read: {'; '.join(problems)}. "
            "A mask is COCO RLE, a list of polygons or a PNG, in Python also an array, of the "
            "photo's size"
        )
    return rles


def _read_mask(mask: object, size_hw: tuple[int, int], *, name: str) -> Rle:
    if isinstance(mask, Mapping | list):
        return to_rle(mask, size_hw=size_hw).rle
    if not isinstance(mask, np.ndarray):
        data = read_bytes(mask, name=name)
        try:
            # Before it is decoded: a small file may hold a mask that fills the memory.
            _check_size(read_header(data).size_hw, size_hw, name)
            mask = read_values(data, bits=None, max_pixels=None)
        except LabelError as error:
            raise DatasetError(f"{name}: {error}") from error
    _check_size(mask.shape, size_hw, name)
    packed = mask_api.encode(np.asfortranarray(mask != 0, dtype=np.uint8))
    return {"size": list(size_hw), "counts": packed["counts"]}


def _check_size(size: tuple[int, ...], size_hw: tuple[int, int], name: str) -> None:
    if size != size_hw:
        raise DatasetError(f"{name}: size {list(size)}, the photo has {list(size_hw)}")
