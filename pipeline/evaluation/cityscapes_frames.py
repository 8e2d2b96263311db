"""Count the pixels that predicted masks share with the objects of one Cityscapes frame.

Cityscapes' AP needs only pixel counts: of each object and mask, of their intersections, and of a
mask on void. They are integers, so any number of workers can count frames in any order.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_api

from pipeline.data.cityscapes_classes import CLASSES, INSTANCE_CLASSES
from pipeline.errors import DatasetError
from pipeline.evaluation.bands import (
    CITYSCAPES_DILATION_RATIO,
    band_px,
    crop_slices,
    mask_to_boundary,
)

Counts: TypeAlias = NDArray[np.int64]

FIRST_INSTANCE_ID = 1000
"""Ids below are label ids; that of a class with instances marks a group of objects."""

_NUM_IDS = FIRST_INSTANCE_ID * (max(each.label_id for each in CLASSES) + 1)

_EVALUATED = [each.label_id for each in INSTANCE_CLASSES]

_VOID = [each.label_id for each in CLASSES if each.is_ignored and each.label_id >= 0]
"""As in cityscapesScripts: a caravan or trailer is void as a group, but not as an object."""


class FoundMask(NamedTuple):
    """One predicted instance of a frame."""

    label_id: int
    """24 to 33, not the train id."""
    score: float
    mask: NDArray[np.bool_]
    """(H, W) of the frame."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameCounts:
    """Pixel counts of a frame with O objects (including groups) and D predicted masks."""

    object_ids: Counts
    """(O,) instance map values."""
    object_px: Counts
    object_band_px: Counts
    label_ids: Counts
    """(D,) of the predicted masks."""
    scores: NDArray[np.float64]
    found_px: Counts
    found_band_px: Counts
    void_px: Counts
    """(D,) pixels on void."""
    shared_px: Counts
    """(D, O) intersections, whatever the classes."""
    shared_band_px: Counts
    """(D, O) intersections of the bands."""
    empty: int
    """Number of empty masks; not in D."""
    foreign_ids: tuple[int, ...]
    """Label ids of masks of classes without instances; not in D."""


def decode_masks(rows: Iterable[Mapping[str, Any]]) -> Iterator[FoundMask]:
    """Decode the masks of a COCO results file one at a time; category_id is the label id."""
    for row in rows:
        mask = np.ascontiguousarray(mask_api.decode(row["segmentation"]))
        yield FoundMask(row["category_id"], row["score"], mask.view(np.bool_))


def find_unknown_ids(instance_map: NDArray[np.uint16]) -> list[int]:
    """List the values of an instance map that do not belong to any class."""
    known = {each.label_id for each in CLASSES}
    things = {each.label_id for each in CLASSES if each.has_instances}
    present: list[int] = np.flatnonzero(np.bincount(instance_map.ravel())).tolist()
    return [v for v in present if v not in known and v // FIRST_INSTANCE_ID not in things]


def count_frame(
    instance_map: NDArray[np.uint16],
    found: Iterable[FoundMask],
    *,
    dilation_ratio: float = CITYSCAPES_DILATION_RATIO,
) -> FrameCounts:
    """Count the pixels that masks share with the objects of a frame.

    Args:
        instance_map: (H, W) as in *_instanceIds.png: label_id * 1000 + number for an object, the
            label_id alone for everything else.
        found: the predicted masks; consumed one by one.
        dilation_ratio: the band of the boundary, in image diagonals.

    Raises:
        DatasetError: the map has unknown ids, or a mask has another size.
    """
    height, width = instance_map.shape
    unknown = find_unknown_ids(instance_map)
    if unknown:
        raise DatasetError(f"an instance map holds {unknown[:3]}, which are not ids of any class")
    width_px = band_px(height=height, width=width, dilation_ratio=dilation_ratio)
    truth = _Truth.read(instance_map, width_px=width_px)
    masks: list[_MaskCounts] = []
    empty, foreign_ids = 0, []
    for each in found:
        if each.mask.shape != (height, width):
            raise DatasetError(
                f"a mask of {each.mask.shape} pixels on a frame of {instance_map.shape}: masks "
                "must have the frame's height and width"
            )
        crop = crop_slices(each.mask)
        if each.label_id not in _EVALUATED:
            foreign_ids.append(each.label_id)
        elif not each.mask[crop].size:
            empty += 1
        else:
            masks.append(truth.count(each, crop, width_px=width_px))
    num_objects = len(truth.object_ids)
    return FrameCounts(
        object_ids=truth.object_ids,
        object_px=truth.object_px,
        object_band_px=truth.object_band_px,
        label_ids=np.array([each.label_id for each in masks], np.int64),
        scores=np.array([each.score for each in masks], np.float64),
        found_px=np.array([each.px for each in masks], np.int64),
        found_band_px=np.array([each.band_px for each in masks], np.int64),
        void_px=np.array([each.void_px for each in masks], np.int64),
        shared_px=np.array([each.shared_px for each in masks], np.int64).reshape(-1, num_objects),
        shared_band_px=np.array([each.shared_band_px for each in masks], np.int64).reshape(
            -1, num_objects
        ),
        empty=empty,
        foreign_ids=tuple(foreign_ids),
    )


class _MaskCounts(NamedTuple):
    label_id: int
    score: float
    px: int
    band_px: int
    void_px: int
    shared_px: Counts
    shared_band_px: Counts


@dataclass(frozen=True, slots=True)
class _Truth:
    """An instance map, indexed so that a mask is counted in one pass over its own pixels."""

    object_ids: Counts
    object_px: Counts
    object_band_px: Counts
    indices: NDArray[np.uint16]
    """(H, W) index of the object; O is void, O + 1 everything else."""
    band_indices: NDArray[np.uint16]
    """(H, W) index of the object in its band; O + 1 elsewhere."""

    @classmethod
    def read(cls, instance_map: NDArray[np.uint16], *, width_px: int) -> "_Truth":
        present = np.bincount(instance_map.ravel(), minlength=_NUM_IDS)
        ids = np.flatnonzero(present)
        label_ids = np.where(ids < FIRST_INSTANCE_ID, ids, ids // FIRST_INSTANCE_ID)
        object_ids = ids[np.isin(label_ids, _EVALUATED)]
        number = len(object_ids)
        index_of_id = np.full(_NUM_IDS, number + 1, np.uint16)
        index_of_id[_VOID] = number
        index_of_id[object_ids] = np.arange(number)
        indices = index_of_id[instance_map]
        band_indices = np.full(indices.shape, number + 1, np.uint16)
        object_band_px = np.zeros(number, np.int64)
        for index in range(number):
            mask = indices == index
            crop = crop_slices(mask)
            band = mask_to_boundary(mask[crop], width_px=width_px)
            band_indices[crop][band] = index
            object_band_px[index] = band.sum()
        return cls(object_ids, present[object_ids], object_band_px, indices, band_indices)

    def count(self, found: FoundMask, crop: tuple[slice, slice], *, width_px: int) -> _MaskCounts:
        number = len(self.object_ids)
        mask = found.mask[crop]
        band = mask_to_boundary(mask, width_px=width_px)
        on = np.bincount(self.indices[crop][mask], minlength=number + 2)
        band_on = np.bincount(self.band_indices[crop][band], minlength=number + 2)
        return _MaskCounts(
            label_id=found.label_id,
            score=found.score,
            px=int(on.sum()),
            band_px=int(band_on.sum()),
            void_px=int(on[number]),
            shared_px=on[:number],
            shared_band_px=band_on[:number],
        )
