"""Refine the masks of one photo, and compare them with the truth if there is one."""

from collections.abc import Sequence

import numpy as np
import torch
from pycocotools import mask as mask_api

from bsm.refine.refiner import Refiner
from pipeline import storage
from pipeline.data.photo import Photo, PhotoError, decode_photo
from pipeline.errors import StorageError
from pipeline.evaluation.bands import COCO_DILATION_RATIO
from pipeline.evaluation.mask_refinement import refine_rles
from pipeline.evaluation.refinement_scores import join_scores, score_refinement
from pipeline.refine.photo_masks import ObjectMask, PhotoMasks, PhotoResult

_MIN_IOU = 0.5
"""A mask belongs to the true object that it overlaps most, and at least this much."""


class PhotoRefiner:
    """Refines the masks of photos, on the model's device."""

    def __init__(self, model: Refiner, *, images: str, max_change: float, mask_bytes: int) -> None:
        """Take a model.

        Args:
            model: in evaluation mode.
            images: folder or URI of the photos.
            max_change: masks that would change more are kept.
            mask_bytes: memory limit in bytes for dense masks.
        """
        self._model, self._images = model, images
        self._max_change, self._mask_bytes = max_change, mask_bytes

    def __call__(self, photo: PhotoMasks) -> PhotoResult:
        """Refine the masks of a photo, or leave it out if it cannot be read or is too large."""
        try:
            data = storage.read_bytes(storage.join(self._images, photo.name))
            return self._refine(decode_photo(data), photo)
        except PhotoError as error:
            return _leave_out(error.kind, str(error))
        except StorageError as error:
            return _leave_out("image_unreadable", str(error))
        except (MemoryError, torch.OutOfMemoryError) as error:
            cause = str(error)[:100] or type(error).__name__
            return _leave_out("image_too_large", f"not enough memory to refine it: {cause}")

    def _refine(self, decoded: Photo, photo: PhotoMasks) -> PhotoResult:
        given = [each.rle for each in photo.masks]
        refined = refine_rles(
            self._model,
            decoded.pixels,
            given,
            max_change=self._max_change,
            mask_bytes=self._mask_bytes,
        )
        scores = [
            score_refinement(
                photo.truth[true].rle, given[mine], refined[mine].rle, ratio=COCO_DILATION_RATIO
            )
            for mine, true in pair_with_truth(photo.masks, photo.truth)
        ]
        return PhotoResult(refined=refined, scores=join_scores(scores), notices=decoded.notices)


def _leave_out(kind: str, reason: str) -> PhotoResult:
    return PhotoResult(refined=[], scores=join_scores([]), notices=[(kind, reason)], left_out=True)


def pair_with_truth(
    masks: Sequence[ObjectMask], truth: Sequence[ObjectMask]
) -> list[tuple[int, int]]:
    """Pair masks with true objects.

    By annotation id if all masks have one; else each once, by the highest IoU within a category, of
    at least 0.5.

    Returns:
        Indices into both.
    """
    if not masks or not truth:
        return []
    if all(each.annotation_id is not None for each in masks):
        by_id = {each.annotation_id: index for index, each in enumerate(truth)}
        return [
            (index, by_id[each.annotation_id])
            for index, each in enumerate(masks)
            if each.annotation_id in by_id
        ]
    ious = np.asarray(
        mask_api.iou([e.rle for e in masks], [e.rle for e in truth], [0] * len(truth))
    )
    is_other = [[a.category_id != b.category_id for b in truth] for a in masks]
    ious = np.where(is_other, 0.0, ious)
    found: list[tuple[int, int]] = []
    while (best := ious.max()) >= _MIN_IOU:
        mine, true = (int(index) for index in np.argwhere(ious == best)[0])
        found.append((mine, true))
        ious[mine], ious[:, true] = 0.0, 0.0
    return found
