"""Paste objects of one sample into another: simple copy-paste (Ghiasi et al., 2021).

The partner of a sample is trained in the same lane, one step before or after it: steps 2 k and
2 k + 1 exchange objects. So a worker has both samples at hand whatever the number of workers, and
neither reads nor decodes an image twice. With copy-paste on, the plan interleaves the row groups of
two windows (pipeline/data/plan.py), so both come from different parts of the data set.

A random half of the partner's objects is pasted where the partner shows them, moved by a random
offset if the images differ in size, each only if all of it fits into the image. What it covers is
taken off the masks below, on the pixels of the input; their boxes and squeeze fields are computed
again from these masks, and objects without a pixel left are dropped. The edges of pasted pixels are
smoothed, those of masks are not.
"""

from typing import NamedTuple

import cv2
import numpy as np
import torch

from pipeline.data.augment import ResizeFlip
from pipeline.data.batch import Ints
from pipeline.data.mask_patches import EMPTY, Patch, cover_patch, resize_patch, unite_patches
from pipeline.data.objects import SampleObjects, Size, measure_patch
from pipeline.data.photo import Pixels
from pipeline.data.samples import Samples
from pipeline.data.seeds import hash_ints, uniform

# Purpose of a draw; part of its hash. augment.py has others.
_PASTE, _CHOICE, _OFFSET = 21, 22, (23, 24)

_CHOSEN = 0.5
"""Share of the partner's objects that are pasted."""

_EDGE_SIGMA_PX, _EDGE_REACH_PX = 1.0, 2
"""Gaussian that smooths the edges of pasted pixels, and how far it reaches."""


class _Layer(NamedTuple):
    """Objects to paste, in pixels of the image that gets them."""

    objects: SampleObjects
    cover: Patch
    """Their masks, united."""
    pixels: Pixels
    """(h, w, 3) of their image, around the cover; a copy."""
    corner_xy: tuple[int, int]
    """Of these pixels."""


def paste_objects(
    samples: Samples, partners: Ints, *, probability: float, with_masks: bool
) -> Samples:
    """Paste objects of each sample's partner into it.

    Args:
        samples: with masks; their images are changed in place.
        partners: (N,) index of each sample's partner.
        probability: that a sample gets objects.
        with_masks: bring all masks of samples that get objects to the size of their images;
            otherwise only those that are needed.
    """
    chance = uniform(hash_ints(samples.seeds, _PASTE))
    layers = [
        _draw_layer(samples, index, int(partner)) if chance[index] < probability else None
        for index, partner in enumerate(partners)
    ]
    images, parts = list(samples.images), []
    transforms, sizes = list(samples.transforms), list(samples.mask_sizes_hw)
    dropped = samples.dropped.copy()
    for index, layer in enumerate(layers):
        own = samples.objects.of_images(index, index + 1)
        if layer is not None:
            rest = _cover_objects(samples, index, own, layer.cover, with_masks=with_masks)
            dropped[index] += len(own.image) - len(rest.image)
            own = SampleObjects.concatenate([rest, layer.objects])
            images[index] = blend(images[index], layer.pixels, layer.corner_xy, layer.cover)
            sizes[index] = images[index].shape[:2]
            transforms[index] = ResizeFlip(*sizes[index], flipped=False)
        parts.append(own._replace(image=np.full_like(own.image, index)))
    return Samples(
        images=images,
        objects=SampleObjects.concatenate(parts),
        transforms=transforms,
        mask_sizes_hw=sizes,
        seeds=samples.seeds,
        dropped=dropped,
    )


def blend(image: Pixels, above: Pixels, corner_xy: tuple[int, int], cover: Patch) -> Pixels:
    """Paste a part of one image into another, with smoothed edges.

    Args:
        image: (H, W, 3); changed in place unless it is read-only.
        above: (h, w, 3), around the part.
        corner_xy: of `above` in the image.
        cover: the part, in pixels of the image.

    Returns:
        The image.
    """
    (left, top), (height, width) = corner_xy, above.shape[:2]
    x0, y0, x1, y1 = cover.box_xyxy
    alpha = np.zeros((height, width), dtype=np.uint8)
    alpha[y0 - top : y1 - top, x0 - left : x1 - left] = 255 * cover.pixels
    side = 2 * _EDGE_REACH_PX + 1
    alpha = np.asarray(
        cv2.GaussianBlur(alpha, (side, side), _EDGE_SIGMA_PX, borderType=cv2.BORDER_REPLICATE)
    )
    image = image if image.flags.writeable else image.copy()
    part = image[top : top + height, left : left + width]
    blended = np.array(part, order="C")
    # Only the edges need numbers; 0 wraps around to 255.
    edge = np.flatnonzero(alpha - np.uint8(1) < 254)
    share = alpha.take(edge).astype(np.uint16)[:, None]
    below, over = blended.reshape(-1, 3), above.reshape(-1, 3)
    mixed = (below[edge] * (255 - share) + over[edge] * share + 127) // 255
    cv2.copyTo(above, alpha, blended)
    below[edge] = mixed
    part[...] = blended
    return image


def _draw_layer(samples: Samples, index: int, partner: int) -> _Layer | None:
    """Draw the objects that a sample gets, and their offset; None if there are none."""
    seed, size_hw = int(samples.seeds[index]), samples.images[index].shape[:2]
    offset_xy = _draw_offset(size_hw, samples.images[partner].shape[:2], seed=seed)
    objects = samples.objects.of_images(partner, partner + 1)
    draws = uniform(hash_ints(seed, _CHOICE, np.arange(len(objects.image))))
    objects = objects.take(np.flatnonzero(draws < _CHOSEN))
    fitting, patches = [], []
    for each, patch in enumerate(objects.patches):
        resized = _to_input(samples, partner, patch)
        moved = None if resized is None else resized.move(*offset_xy)
        if moved is not None and _fits(moved, size_hw):
            fitting.append(each)
            patches.append(moved)
    if not fitting:
        return None
    offset = torch.tensor(offset_xy * 2, dtype=torch.float32)
    limits = torch.tensor(size_hw[::-1] * 2, dtype=torch.float32)
    objects = objects._replace(
        # Drawn boxes may be larger than their masks.
        boxes_xyxy=(objects.boxes_xyxy + offset).clamp(min=0).minimum(limits),
        frames_xyxy=objects.frames_xyxy + offset,
    ).take(np.array(fitting))
    cover = unite_patches(patches)
    pixels, corner_xy = _cut_out(samples.images[partner], cover, size_hw, offset_xy)
    return _Layer(objects._replace(patches=tuple(patches)), cover, pixels, corner_xy)


def _draw_offset(size_hw: Size, partner_hw: Size, *, seed: int) -> tuple[int, int]:
    """Draw where the partner's image lies: within the sample's, or around it, on each axis."""
    dy, dx = (
        min(0, own - other) + int(uniform(hash_ints(seed, purpose))[0] * (abs(own - other) + 1))
        for own, other, purpose in zip(size_hw, partner_hw, _OFFSET, strict=True)
    )
    return dx, dy


def _cut_out(
    image: Pixels, cover: Patch, size_hw: Size, offset_xy: tuple[int, int]
) -> tuple[Pixels, tuple[int, int]]:
    """Copy the pixels around a cover, as far as edges reach and both images go; and their corner.

    Args:
        image: of the objects, moved by the offset.
        cover: in pixels of the other image.
        size_hw: of the other image.
        offset_xy: of the image in the other one.
    """
    (height, width), (dx, dy) = image.shape[:2], offset_xy
    x0, y0, x1, y1 = cover.box_xyxy
    left, top = max(x0 - _EDGE_REACH_PX, 0, dx), max(y0 - _EDGE_REACH_PX, 0, dy)
    right = min(x1 + _EDGE_REACH_PX, size_hw[1], dx + width)
    bottom = min(y1 + _EDGE_REACH_PX, size_hw[0], dy + height)
    return np.array(image[top - dy : bottom - dy, left - dx : right - dx], order="C"), (left, top)


def _to_input(samples: Samples, index: int, patch: Patch) -> Patch | None:
    """Resize and flip a mask of a sample to its image; None if no pixel is left."""
    transform = samples.transforms[index]
    size_hw = transform.height_px, transform.width_px
    resized = resize_patch(patch, samples.mask_sizes_hw[index], size_hw)
    return resized.flip(size_hw[1]) if resized is not None and transform.flipped else resized


def _fits(patch: Patch, size_hw: Size) -> bool:
    x0, y0, x1, y1 = patch.box_xyxy
    return x0 >= 0 and y0 >= 0 and x1 <= size_hw[1] and y1 <= size_hw[0]


def _cover_objects(
    samples: Samples, index: int, objects: SampleObjects, cover: Patch, *, with_masks: bool
) -> SampleObjects:
    """Take off a sample's objects what is covered, and drop those of which nothing is left."""
    boxes, frames = objects.boxes_xyxy.clone(), objects.frames_xyxy.clone()
    fields, kept, rests = objects.squeeze_field.clone(), [], []
    for each, stored in enumerate(objects.patches):
        if not (with_masks or _may_touch(samples, index, stored, cover)):
            kept.append(each)
            rests.append(EMPTY)
            continue
        patch = _to_input(samples, index, stored)
        # A tiny object may have no pixel of the input; it stays as it is.
        rest = EMPTY if patch is None else cover_patch(patch, cover)
        if rest is None:
            continue
        kept.append(each)
        rests.append(rest)
        if patch is not None and rest is not patch:
            boxes[each], frames[each], fields[each] = measure_patch(rest)
    left = SampleObjects(objects.image, boxes, frames, objects.category_index, fields)
    return left.take(np.array(kept, dtype=np.int64))._replace(patches=tuple(rests))


def _may_touch(samples: Samples, index: int, patch: Patch, cover: Patch) -> bool:
    """Tell whether a mask may reach what is covered, by its box."""
    transform, (height, width) = samples.transforms[index], samples.mask_sizes_hw[index]
    patch = patch.flip(width) if transform.flipped else patch
    scale = np.array([transform.width_px / width, transform.height_px / height] * 2)
    x0, y0, x1, y1 = patch.box_xyxy * scale + (-1, -1, 1, 1)
    left, top, right, bottom = cover.box_xyxy
    return bool(x0 < right and left < x1 and y0 < bottom and top < y1)
