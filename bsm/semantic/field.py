"""Targets of label maps: comparisons with a precomputed field, for every class and every kernel.

Each class of a label map is one binary mask (sec. 3.2), and its bands are where its outline is
nearer than the kernel reaches. What is stored for a pixel of class c is therefore the class, other
than c, whose nearest pixel is nearest, how far that pixel is, and the same once more for the next
class: with them every band of every class is known wherever at most three classes meet within
reach. Distances are chessboard distances between pixel centers, so a neighbor is at 1, and the
outline itself half a pixel nearer: at s = zoom * (distance - 1 / 2), in pixels of a map that was
resized by zoom.

With r = (K - 1) / 2 and a map that was not resized, these are exactly the dilations and erosions of
eq. 3 and the 3 x 3 Laplacian, class by class (bsm/semantic/morphology.py), with two additions that
label maps need. Void (255) is no class: it is outside of every class where those grow, inside where
they shrink, so it makes no boundary and no band ends at it; and in no target is any void pixel. And
the border of the map neither erodes nor makes boundary: what is beyond is unknown, not background.

    N images, K classes, H, W size of a label map
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

VOID = 255
"""Label of pixels that carry no loss, and of "no such class" in a field."""

FARTHEST = 254
"""The longest distance that a byte holds beside 255; a field may be measured less far."""


class LabelField(NamedTuple):
    """The two other classes that are nearest to each pixel; 255 and 255 where there is none.

    Void pixels hold 255 throughout.
    """

    other_1: UInt8[Tensor, "N H W"]
    """The nearest class that is neither void nor the pixel's own."""
    distance_1: UInt8[Tensor, "N H W"]
    """How far its nearest pixel is, in pixels of the map that was measured, at least 1."""
    other_2: UInt8[Tensor, "N H W"]
    """The nearest class but for the pixel's own and `other_1`."""
    distance_2: UInt8[Tensor, "N H W"]
    """How far that one is."""


class SemanticTargets(NamedTuple):
    """Ground truth of N images, in the pixels of the (resized, cropped, flipped, padded) input."""

    label: UInt8[Tensor, "N H W"]
    """Class of each pixel; 255 is void, and what is beyond the image."""
    other_1: UInt8[Tensor, "N H W"]
    """See `LabelField`, which was resized like the label: by nearest pixel."""
    distance_1: UInt8[Tensor, "N H W"]
    """In pixels before the resize."""
    other_2: UInt8[Tensor, "N H W"]
    distance_2: UInt8[Tensor, "N H W"]
    zoom: Float[Tensor, " N"]
    """Side of the resized image over that of the stored one."""
    sample_seed: Int64[Tensor, " N"]
    """From (seed, epoch, image id): every random choice in the model comes from it."""


class ClassTargets(NamedTuple):
    """What the squeeze of each class in each image is trained on; nothing of it is on a void pixel.

    Bytes, not floats: at 19 classes and 832 x 832 pixels each map has 13 million cells.
    """

    boundary: Bool[Tensor, "N K H W"]
    """The inner ring of each class."""
    contraction: Bool[Tensor, "N K H W"]
    """The band outside each class."""
    expansion: Bool[Tensor, "N K H W"]
    """The band inside."""
    present: Bool[Tensor, "N K"]
    """Which classes are in which image: the pairs that carry loss."""
    valid: Bool[Tensor, "N H W"]
    """Pixels that are not void."""


def targets_from_semantic_field(
    targets: SemanticTargets, *, num_classes: int, kernel_size: int, unite_boundary: bool
) -> ClassTargets:
    """Read the targets of every class.

    Args:
        targets: labels and their field.
        num_classes: K.
        kernel_size: side of the dilation and erosion kernel in pixels of the input, odd. It sees no
            farther than the field was measured: (kernel_size - 1) / 2 is to be less than the zoom
            times that.
        unite_boundary: unite both bands with the boundary, as the released code does (eq. 3 does
            not).

    Raises:
        ValueError: kernel_size is even.
    """
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(
            f"kernel_size {kernel_size}: the band of an even kernel lies off center. "
            f"Take {kernel_size - 1} or {kernel_size + 1}."
        )
    reach = (kernel_size - 1) // 2
    label, valid = targets.label, targets.label != VOID

    def of_classes(labels: Tensor, where: Tensor) -> Tensor:
        return masks_of_classes(torch.where(where, labels, VOID), num_classes=num_classes)

    def outline_within(pixels: int, other: Tensor, distance: Tensor) -> Tensor:
        s = targets.zoom.view(-1, 1, 1) * (distance.float() - 0.5)
        return valid & (other != VOID) & (s <= pixels)

    near_1 = outline_within(reach, targets.other_1, targets.distance_1)
    near_2 = outline_within(reach, targets.other_2, targets.distance_2)
    ring = outline_within(1, targets.other_1, targets.distance_1)
    boundary = of_classes(label, ring)
    expansion = of_classes(label, near_1)
    contraction = of_classes(targets.other_1, near_1) | of_classes(targets.other_2, near_2)
    if unite_boundary:
        contraction |= boundary
        expansion |= boundary
    present = of_classes(label, valid).flatten(2).any(2)
    return ClassTargets(boundary, contraction, expansion, present, valid)


def label_to_field(
    label: UInt8[Tensor, "N H W"], *, num_classes: int, farthest: int = FARTHEST
) -> LabelField:
    """Measure the field of label maps: the plain reference, seconds for a large map.

    A dilation by 3 x 3 brings a class one pixel of chessboard distance further. Of classes at the
    same distance the lower index comes first.

    Args:
        label: classes from 0, and 255 for void.
        num_classes: K.
        farthest: classes that are farther away, in pixels, are left out; at most 254.
    """
    masks = masks_of_classes(label, num_classes=num_classes)
    reached, distance = masks.float(), torch.zeros_like(masks, dtype=torch.int64)
    for _ in range(min(farthest, max(label.shape[-2:]))):
        distance += reached == 0
        reached = F.max_pool2d(reached, 3, stride=1, padding=1)
    is_other = (reached > 0) & ~masks & (label != VOID)[:, None]
    # Distance and class in one number, so that one sort gives both.
    index = torch.arange(num_classes, device=label.device)
    none = (VOID + 1) * num_classes
    nearest = torch.where(is_other, distance * num_classes + index[:, None, None], none)
    nearest = F.pad(nearest, (0, 0, 0, 0, 0, 2), value=none).sort(dim=1).values
    exists = nearest < none
    other, far = (
        torch.where(exists, value, VOID).to(torch.uint8)
        for value in (nearest % num_classes, nearest // num_classes)
    )
    return LabelField(other[:, 0], far[:, 0], other[:, 1], far[:, 1])


def masks_of_classes(label: UInt8[Tensor, "N H W"], *, num_classes: int) -> Bool[Tensor, "N K H W"]:
    """Tell for each class where it is; void is nowhere."""
    index = torch.arange(num_classes, device=label.device, dtype=label.dtype)
    return label[:, None] == index[:, None, None]
