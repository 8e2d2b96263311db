"""Convert COCO segmentations to compressed RLE, and check them first.

COCO has three formats: polygons, run lengths as a list, and run lengths packed into text. The
evaluators take the last one. For a wrong image size or truncated text they would read past their
buffers or return nonsense. An empty mask is valid: a model may predict one.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pycocotools import mask as mask_api

from pipeline.data.run_length_areas import measure_areas
from pipeline.data.run_lengths import MaskError, read_segmentation
from pipeline.evaluation.problems import show_value

Rle = dict[str, Any]
"""{"size": [height, width], "counts": bytes}, as in pycocotools."""


class MaskRle(NamedTuple):
    """A mask and its number of pixels."""

    rle: Rle
    area_px: int


class SegmentationError(ValueError):
    """A segmentation that is not a mask of its image: the kind of problem, and the value."""

    def __init__(self, kind: str, value: str) -> None:
        super().__init__(f"{kind}: {value}")
        self.kind = kind
        self.value = value


def to_rle(segmentation: object, *, size_hw: tuple[int, int]) -> MaskRle:
    """Convert a COCO segmentation to compressed RLE at image size.

    Args:
        segmentation: polygons, or a dict of size and counts.
        size_hw: height and width of the image.

    Raises:
        SegmentationError: it has none of the three formats, or is not a mask of such an image.
    """
    if isinstance(segmentation, list):
        kind = "invalid polygon"
        _check_polygons(segmentation)
    else:
        kind = "invalid RLE"
        segmentation = _check_rle(segmentation, size_hw=size_hw)
    try:
        lengths = read_segmentation(segmentation, size_hw)
    except MaskError as error:
        if error.kind == "mask_empty":
            empty = {"size": list(size_hw), "counts": [size_hw[0] * size_hw[1]]}
            return MaskRle(mask_api.frPyObjects(empty, *size_hw), 0)
        raise SegmentationError(kind, str(error)) from error
    return MaskRle({"size": list(size_hw), "counts": lengths.encoded}, lengths.area_px)


def to_rles(
    segmentations: Sequence[object], sizes_hw: Sequence[tuple[int, int] | None]
) -> list[MaskRle | None]:
    """Convert the compressed RLEs among COCO segmentations, many at once.

    Args:
        segmentations: of the entries of a file, whatever they hold.
        sizes_hw: of each one's image; None if it is not known.

    Returns:
        For each segmentation its mask, or None: `to_rle` converts it, or says what is wrong.
    """
    packed = {
        position: counts
        for position, (segmentation, size_hw) in enumerate(
            zip(segmentations, sizes_hw, strict=True)
        )
        if (counts := _get_packed(segmentation, size_hw))
    }
    pixels = [height * width for height, width in map(sizes_hw.__getitem__, packed)]  # type: ignore[misc]
    masks: list[MaskRle | None] = [None] * len(segmentations)
    areas = measure_areas(list(packed.values()), pixels)
    for (position, counts), area_px in zip(packed.items(), areas, strict=True):
        if area_px:
            size = list(sizes_hw[position])  # type: ignore[arg-type]
            masks[position] = MaskRle({"size": size, "counts": counts}, area_px)
    return masks


def _get_packed(segmentation: object, size_hw: tuple[int, int] | None) -> bytes:
    """Return the counts of a compressed RLE of such an image; nothing if it is anything else."""
    if size_hw is None or not isinstance(segmentation, dict):
        return b""
    counts, size = segmentation.get("counts"), segmentation.get("size")
    if not isinstance(size, list | tuple) or tuple(size) != size_hw:
        return b""
    if isinstance(counts, str):
        return counts.encode() if counts.isascii() else b""
    return counts if isinstance(counts, bytes) else b""


def _check_rle(segmentation: object, *, size_hw: tuple[int, int]) -> Rle:
    if not isinstance(segmentation, Mapping) or not {"size", "counts"} <= segmentation.keys():
        raise SegmentationError("unknown segmentation format", show_value(segmentation))
    size, counts = segmentation["size"], segmentation["counts"]
    if not isinstance(size, list | tuple) or tuple(size) != size_hw:
        where = f"size {show_value(size)}, the image has {list(size_hw)}"
        raise SegmentationError("wrong segmentation size", where)
    if isinstance(counts, bytes):
        counts = counts.decode("latin-1")
    if not counts or not isinstance(counts, str | list):
        raise SegmentationError("invalid RLE", f"counts {show_value(counts)}")
    return {"size": list(size_hw), "counts": counts}


def _check_polygons(polygons: list[Any]) -> None:
    if not polygons:
        raise SegmentationError("invalid polygon", "no polygon: []")
    for polygon in polygons:
        if not isinstance(polygon, list) or not all(map(_is_number, polygon)):
            raise SegmentationError("invalid polygon", show_value(polygon))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
