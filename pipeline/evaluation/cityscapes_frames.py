"""One frame of Cityscapes in pixels: how the masks that a model found lie on its objects.

Everything that Cityscapes' AP needs of a frame are counts of pixels: of each object and mask, of
what they share, and of what a mask covers of void. They are whole numbers, so frames can be counted
by any number of workers and in any order.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_api

from pipeline.data.cityscapes_classes import CLASSES, INSTANCE_CLASSES
from pipeline.errors import DatasetError
from pipeline.evaluation.bands import CITYSCAPES_DILATION_RATIO, band_of, band_px

Counts: TypeAlias = NDArray[np.int64]

FIRST_INSTANCE_ID = 1000
"""Ids below are classes; what is of a class with instances there is a group of objects."""

_NUM_IDS = FIRST_INSTANCE_ID * (max(each.label_id for each in CLASSES) + 1)

_EVALUATED = [each.label_id for each in INSTANCE_CLASSES]

_VOID = [each.label_id for each in CLASSES if each.ignored and each.label_id >= 0]
"""As cityscapesScripts has it: a caravan or trailer is void as a group, not as an object."""


class FoundMask(NamedTuple):
    """One instance that a model found in a frame."""

    label_id: int
    """24 to 33; not the train id."""
    score: float
    mask: NDArray[np.bool_]
    """(H, W) of the frame."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameCounts:
    """A frame with O objects (groups are among them) and D masks that were found, in pixels."""

    object_ids: Counts
    """(O,) values of the instance map."""
    object_px: Counts
    object_band_px: Counts
    label_ids: Counts
    """(D,) of what was found."""
    scores: NDArray[np.float64]
    found_px: Counts
    found_band_px: Counts
    void_px: Counts
    """(D,) pixels on void."""
    shared_px: Counts
    """(D, O) pixels of both, whatever their classes."""
    shared_band_px: Counts
    """(D, O) pixels of both bands."""
    empty: int
    """Masks without a pixel, which are not among the D."""
    foreign_ids: tuple[int, ...]
    """Label ids of masks of classes without instances, which are not among them either."""


def masks_from_rows(rows: Iterable[Mapping[str, Any]]) -> Iterator[FoundMask]:
    """Paint rows of a COCO results file, one at a time; category_id is the label id."""
    for row in rows:
        mask = np.ascontiguousarray(mask_api.decode(row["segmentation"]))
        yield FoundMask(row["category_id"], row["score"], mask.view(np.bool_))


def strange_ids(instance_map: NDArray[np.uint16]) -> list[int]:
    """List the values of an instance map that belong to no class."""
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
    """Count how masks lie on the objects of a frame.

    Args:
        instance_map: (H, W) as in *_instanceIds.png: label_id * 1000 + number for an object, the
            label_id alone for everything else.
        found: drawn from one by one.
        dilation_ratio: the band of the boundary, in image diagonals.

    Raises:
        DatasetError: the map has values of no class, or a mask is not of its size.
    """
    height, width = instance_map.shape
    strange = strange_ids(instance_map)
    if strange:
        raise DatasetError(f"an instance map holds {strange[:3]}, which are ids of no class")
    width_px = band_px(height=height, width=width, dilation_ratio=dilation_ratio)
    truth = _Truth.read(instance_map, width_px=width_px)
    masks: list[_Counted] = []
    empty, foreign_ids = 0, []
    for each in found:
        if each.mask.shape != (height, width):
            raise DatasetError(
                f"a mask of {each.mask.shape} pixels on a frame of {instance_map.shape}: masks "
                "have the frame's height and width"
            )
        window = _window(each.mask)
        if each.label_id not in _EVALUATED:
            foreign_ids.append(each.label_id)
        elif window is None:
            empty += 1
        else:
            masks.append(truth.count(each, window, width_px=width_px))
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


class _Counted(NamedTuple):
    label_id: int
    score: float
    px: int
    band_px: int
    void_px: int
    shared_px: Counts
    shared_band_px: Counts


@dataclass(frozen=True, slots=True)
class _Truth:
    """An instance map, prepared so that any mask is counted in one pass over its own pixels."""

    object_ids: Counts
    object_px: Counts
    object_band_px: Counts
    places: NDArray[np.uint16]
    """(H, W): an object's place among the O; O is void, O + 1 all the rest."""
    band_places: NDArray[np.uint16]
    """(H, W): the same in the objects' bands, O + 1 elsewhere."""

    @classmethod
    def read(cls, instance_map: NDArray[np.uint16], *, width_px: int) -> "_Truth":
        present = np.bincount(instance_map.ravel(), minlength=_NUM_IDS)
        ids = np.flatnonzero(present)
        label_ids = np.where(ids < FIRST_INSTANCE_ID, ids, ids // FIRST_INSTANCE_ID)
        object_ids = ids[np.isin(label_ids, _EVALUATED)]
        number = len(object_ids)
        place_of = np.full(_NUM_IDS, number + 1, np.uint16)
        place_of[_VOID] = number
        place_of[object_ids] = np.arange(number)
        places = place_of[instance_map]
        band_places = np.full(places.shape, number + 1, np.uint16)
        band_px = np.zeros(number, np.int64)
        for place in range(number):
            mask = places == place
            window = _window(mask)
            band = band_of(mask[window], width_px=width_px)
            band_places[window][band] = place
            band_px[place] = band.sum()
        return cls(object_ids, present[object_ids], band_px, places, band_places)

    def count(self, found: FoundMask, window: tuple[slice, slice], *, width_px: int) -> _Counted:
        number = len(self.object_ids)
        mask = found.mask[window]
        band = band_of(mask, width_px=width_px)
        on = np.bincount(self.places[window][mask], minlength=number + 2)
        band_on = np.bincount(self.band_places[window][band], minlength=number + 2)
        return _Counted(
            label_id=found.label_id,
            score=found.score,
            px=int(on.sum()),
            band_px=int(band_on.sum()),
            void_px=int(on[number]),
            shared_px=on[:number],
            shared_band_px=band_on[:number],
        )


def _window(mask: NDArray[np.bool_]) -> tuple[slice, slice] | None:
    """Give the smallest window around a mask."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not rows.size:
        return None
    columns = np.flatnonzero(mask.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
