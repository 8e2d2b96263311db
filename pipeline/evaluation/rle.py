"""Segmentations of COCO files as compressed run lengths, checked before an evaluator sees them.

COCO knows three forms: polygons, run lengths as a list, and run lengths packed into text. The
evaluators take the last one. A size that is not the image's, or text cut short, is found here: the
evaluators read past their buffers or give nonsense for it. An empty mask is none of that: a model
may well find one.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from pycocotools import mask as mask_api

from pipeline.data.run_lengths import MaskError, read_segmentation
from pipeline.evaluation.problems import short

Rle = dict[str, Any]
"""{"size": [height, width], "counts": bytes}, as pycocotools takes it."""


class MaskRle(NamedTuple):
    """A mask and the number of its pixels."""

    rle: Rle
    area_px: int


class BrokenSegmentation(ValueError):  # noqa: N818  a fault of the data, told as one row of a list
    """A segmentation that is no mask of its image: the kind of the fault, and the value."""

    def __init__(self, kind: str, value: str) -> None:
        super().__init__(f"{kind}: {value}")
        self.kind = kind
        self.value = value


def to_rle(segmentation: object, *, size_hw: tuple[int, int]) -> MaskRle:
    """Turn any form of a COCO segmentation into compressed run lengths at image size.

    Args:
        segmentation: polygons, or a dict of size and counts.
        size_hw: height and width of the image.

    Raises:
        BrokenSegmentation: it is none of the three forms, or no mask of such an image.
    """
    if isinstance(segmentation, list):
        fault = "broken polygon"
        _check_polygons(segmentation)
    else:
        fault = "broken run lengths"
        segmentation = _packed(segmentation, size_hw=size_hw)
    try:
        lengths = read_segmentation(segmentation, size_hw)
    except MaskError as error:
        if error.kind == "mask_empty":
            nothing = {"size": list(size_hw), "counts": [size_hw[0] * size_hw[1]]}
            return MaskRle(mask_api.frPyObjects(nothing, *size_hw), 0)
        raise BrokenSegmentation(fault, str(error)) from error
    return MaskRle({"size": list(size_hw), "counts": lengths.encoded}, lengths.area_px)


def _packed(segmentation: object, *, size_hw: tuple[int, int]) -> Rle:
    if not isinstance(segmentation, Mapping) or not {"size", "counts"} <= segmentation.keys():
        raise BrokenSegmentation("segmentation of no known form", short(segmentation))
    size, counts = segmentation["size"], segmentation["counts"]
    if not isinstance(size, list | tuple) or tuple(size) != size_hw:
        raise BrokenSegmentation(
            "segmentation of another size", f"size {short(size)}, the image has {list(size_hw)}"
        )
    if isinstance(counts, bytes):
        counts = counts.decode("latin-1")
    if not counts or not isinstance(counts, str | list):
        raise BrokenSegmentation("broken run lengths", f"counts {short(counts)}")
    return {"size": list(size_hw), "counts": counts}


def _check_polygons(polygons: list[Any]) -> None:
    if not polygons:
        raise BrokenSegmentation("broken polygon", "no polygon at all: []")
    for polygon in polygons:
        if not isinstance(polygon, list) or not all(map(_is_number, polygon)):
            raise BrokenSegmentation("broken polygon", short(polygon))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
