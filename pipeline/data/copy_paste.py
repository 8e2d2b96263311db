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

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch

from pipeline.data.augment import ResizeFlip
from pipeline.data.batch import Ints
from pipeline.data.mask_patches import Patch, cover_patch, resize_patch, unite_patches
from pipeline.data.objects import Objects, Size, measure_patch
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

    objects: Objects
    offset_xy: tuple[int, int]
    """By which the partner's image is moved."""


def paste_objects(samples: Samples, partners: Ints, *, probability: float) -> Samples:
    """Paste objects of each sample's partner into it.

    Args:
        samples: with masks.
        partners: (N,) index of each sample's partner.
        probability: that a sample gets objects.
    """
    chance = uniform(hash_ints(samples.seeds, _PASTE))
    images, parts = list(samples.images), []
    transforms, sizes = list(samples.transforms), list(samples.mask_sizes_hw)
    dropped = samples.dropped.copy()
    for index, partner in enumerate(partners):
        own = samples.objects.of_images(index, index + 1)
        layer = _draw_layer(samples, index, int(partner)) if chance[index] < probability else None
        if layer is not None:
            cover = unite_patches(layer.objects.patches)
            rest = _cover_objects(own, _to_input(samples, index, own), cover)
            dropped[index] += len(own.image) - len(rest.image)
            own = Objects.concatenate([rest, layer.objects])
            images[index] = blend(images[index], samples.images[partner], cover, layer.offset_xy)
            sizes[index] = images[index].shape[:2]
            transforms[index] = ResizeFlip(*sizes[index], flipped=False)
        parts.append(own._replace(image=np.full_like(own.image, index)))
    return Samples(
        images=images,
        objects=Objects.concatenate(parts),
        transforms=transforms,
        mask_sizes_hw=sizes,
        seeds=samples.seeds,
        dropped=dropped,
    )


def blend(image: Pixels, above: Pixels, cover: Patch, offset_xy: tuple[int, int]) -> Pixels:
    """Paste a part of one image into another, with smoothed edges.

    Args:
        image: (h, w, 3), unchanged.
        above: the image with the part.
        cover: the part, in pixels of `image`.
        offset_xy: by which `above` is moved.
    """
    (height, width), (above_height, above_width) = image.shape[:2], above.shape[:2]
    dx, dy = offset_xy
    x0, y0, x1, y1 = cover.box_xyxy
    left, top = max(x0 - _EDGE_REACH_PX, 0, dx), max(y0 - _EDGE_REACH_PX, 0, dy)
    right = min(x1 + _EDGE_REACH_PX, width, dx + above_width)
    bottom = min(y1 + _EDGE_REACH_PX, height, dy + above_height)
    alpha = np.zeros((bottom - top, right - left), dtype=np.uint8)
    alpha[y0 - top : y1 - top, x0 - left : x1 - left] = 255 * cover.pixels
    side = 2 * _EDGE_REACH_PX + 1
    alpha = np.asarray(
        cv2.GaussianBlur(alpha, (side, side), _EDGE_SIGMA_PX, borderType=cv2.BORDER_REPLICATE)
    )
    blended = image.copy()
    below = blended[top:bottom, left:right]
    pasted = above[top - dy : bottom - dy, left - dx : right - dx]
    np.copyto(below, pasted, where=(alpha == 255)[:, :, None])
    # Only the edges need numbers.
    edge = (alpha > 0) & (alpha < 255)
    share = alpha[edge].astype(np.uint16)[:, None]
    below[edge] = (below[edge] * (255 - share) + pasted[edge] * share + 127) // 255
    return blended


def _draw_layer(samples: Samples, index: int, partner: int) -> _Layer | None:
    """Draw the objects that a sample gets, and their offset; None if there are none."""
    seed, size_hw = int(samples.seeds[index]), samples.images[index].shape[:2]
    offset_xy = _draw_offset(size_hw, samples.images[partner].shape[:2], seed=seed)
    objects = samples.objects.of_images(partner, partner + 1)
    draws = uniform(hash_ints(seed, _CHOICE, np.arange(len(objects.image))))
    objects = objects.take(np.flatnonzero(draws < _CHOSEN))
    fitting, patches = [], []
    for each, patch in enumerate(_to_input(samples, partner, objects)):
        moved = None if patch is None else patch.move(*offset_xy)
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
    return _Layer(objects._replace(patches=tuple(patches)), offset_xy)


def _draw_offset(size_hw: Size, partner_hw: Size, *, seed: int) -> tuple[int, int]:
    """Draw where the partner's image lies: within the sample's, or around it, on each axis."""
    dy, dx = (
        min(0, own - other) + int(uniform(hash_ints(seed, purpose))[0] * (abs(own - other) + 1))
        for own, other, purpose in zip(size_hw, partner_hw, _OFFSET, strict=True)
    )
    return dx, dy


def _to_input(samples: Samples, index: int, objects: Objects) -> list[Patch | None]:
    """Resize and flip the masks of a sample's objects to its image; None where no pixel is left."""
    transform = samples.transforms[index]
    size_hw = transform.height_px, transform.width_px
    resized = [
        resize_patch(patch, samples.mask_sizes_hw[index], size_hw) for patch in objects.patches
    ]
    if not transform.flipped:
        return resized
    return [None if patch is None else patch.flip(size_hw[1]) for patch in resized]


def _fits(patch: Patch, size_hw: Size) -> bool:
    x0, y0, x1, y1 = patch.box_xyxy
    return x0 >= 0 and y0 >= 0 and x1 <= size_hw[1] and y1 <= size_hw[0]


def _cover_objects(objects: Objects, patches: Sequence[Patch | None], cover: Patch) -> Objects:
    """Take off objects what is covered.

    Args:
        objects: of the sample.
        patches: their masks in its image.
        cover: what lies above them.
    """
    boxes, frames = objects.boxes_xyxy.clone(), objects.frames_xyxy.clone()
    fields, kept, rests = objects.squeeze_field.clone(), [], []
    for index, patch in enumerate(patches):
        rest = None if patch is None else cover_patch(patch, cover)
        if rest is None:
            continue
        kept.append(index)
        rests.append(rest)
        if rest is not patch:
            boxes[index], frames[index], fields[index] = measure_patch(rest)
    left = Objects(objects.image, boxes, frames, objects.category_index, fields)
    return left.take(np.array(kept, dtype=np.int64))._replace(patches=tuple(rests))
