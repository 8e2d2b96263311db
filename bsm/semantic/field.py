"""The field of label maps: targets of every class and kernel by comparison.

Each class of a label map is one binary mask (sec. 3.2), and its bands are the pixels whose distance
to its outline is within the kernel's reach. For a pixel of class c the field stores the nearest
other class, the distance to its nearest pixel, and the same for the second nearest: they give every
band of every class wherever at most three classes meet within reach. Distances are chessboard
distances between pixel centers, so a neighbor is at 1 and the outline half a pixel nearer: at
s = zoom * (distance - 1 / 2), in pixels of a map resized by zoom.

With r = (K - 1) / 2 and no resize, these are exactly the dilations and erosions of eq. 3 and the
3 x 3 Laplacian, class by class (bsm/semantic/morphology.py), with two rules for label maps. Void
(255) is not a class: it counts as outside where a class is dilated and as inside where it is
eroded, so it makes no boundary and ends no band, and void pixels are in no target. The border of
the map neither erodes nor makes boundary, because the pixels beyond it are unknown, not background.

N images, K classes, H, W size of a label map
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

VOID = 255
"""Label of pixels without a loss, and "no such class" in a field."""

FARTHEST = 254
"""The longest distance that a byte holds beside 255; a field may stop earlier."""


class LabelField(NamedTuple):
    """The two nearest other classes of each pixel; 255 if missing, and for void pixels."""

    other_1: UInt8[Tensor, "N H W"]
    """The nearest class that is neither void nor the pixel's own."""
    distance_1: UInt8[Tensor, "N H W"]
    """Distance to its nearest pixel, in pixels of the measured map, at least 1."""
    other_2: UInt8[Tensor, "N H W"]
    """The next nearest class."""
    distance_2: UInt8[Tensor, "N H W"]
    """Distance to its nearest pixel."""


class SemanticTargets(NamedTuple):
    """Ground truth of N images, in the pixels of the (resized, cropped, flipped, padded) input."""

    label: UInt8[Tensor, "N H W"]
    """Class of each pixel; 255 where void or beyond the image."""
    other_1: UInt8[Tensor, "N H W"]
    """See `LabelField`; resized like the label, by nearest pixel."""
    distance_1: UInt8[Tensor, "N H W"]
    """In pixels before the resize."""
    other_2: UInt8[Tensor, "N H W"]
    distance_2: UInt8[Tensor, "N H W"]
    zoom: Float[Tensor, " N"]
    """Side of the resized image over that of the stored one."""
    sample_seed: Int64[Tensor, " N"]
    """From (seed, epoch, image id): every random choice in the model comes from it."""


class ClassTargets(NamedTuple):
    """Targets of the squeeze for each class in each image, without void pixels.

    Bytes, not floats: at 19 classes and 832 x 832 pixels each map has 13 million cells.
    """

    boundary: Bool[Tensor, "N K H W"]
    """The inner ring of each class."""
    contraction: Bool[Tensor, "N K H W"]
    """The band outside each class."""
    expansion: Bool[Tensor, "N K H W"]
    """The band inside."""
    present: Bool[Tensor, "N K"]
    """Whether the class is in the image: only such pairs have a loss."""
    valid: Bool[Tensor, "N H W"]
    """Pixels that are not void."""


def targets_from_semantic_field(
    targets: SemanticTargets, *, num_classes: int, kernel_size: int, unite_boundary: bool
) -> ClassTargets:
    """Read the targets of every class.

    Args:
        targets: labels and their field.
        num_classes: K.
        kernel_size: side of the dilation and erosion kernel in pixels of the input, odd. Its reach,
            (kernel_size - 1) / 2, must be less than zoom times the field's longest distance.
        unite_boundary: unite both bands with the boundary, as the released code does (eq. 3 does
            not).

    Raises:
        ValueError: kernel_size is even.
    """
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(
            f"kernel_size {kernel_size}: the band of an even kernel is off center. "
            f"Use {kernel_size - 1} or {kernel_size + 1}."
        )
    reach = (kernel_size - 1) // 2
    label, valid = targets.label, targets.label != VOID

    def to_masks(labels: Tensor, where: Tensor) -> Tensor:
        return labels_to_masks(torch.where(where, labels, VOID), num_classes=num_classes)

    def is_outline_within(pixels: int, other: Tensor, distance: Tensor) -> Tensor:
        s = targets.zoom.view(-1, 1, 1) * (distance.float() - 0.5)
        return valid & (other != VOID) & (s <= pixels)

    near_1 = is_outline_within(reach, targets.other_1, targets.distance_1)
    near_2 = is_outline_within(reach, targets.other_2, targets.distance_2)
    ring = is_outline_within(1, targets.other_1, targets.distance_1)
    boundary = to_masks(label, ring)
    expansion = to_masks(label, near_1)
    contraction = to_masks(targets.other_1, near_1) | to_masks(targets.other_2, near_2)
    if unite_boundary:
        contraction |= boundary
        expansion |= boundary
    present = to_masks(label, valid).flatten(2).any(2)
    return ClassTargets(boundary, contraction, expansion, present, valid)


def label_to_field(
    label: UInt8[Tensor, "N H W"], *, num_classes: int, farthest: int = FARTHEST
) -> LabelField:
    """Measure the field of label maps: the plain reference, seconds for a large map.

    A dilation by 3 x 3 grows a class by one pixel of chessboard distance. Of classes at the same
    distance the lower index comes first.

    Args:
        label: classes from 0, and 255 for void.
        num_classes: K.
        farthest: longest distance in pixels at which a class is stored; at most 254.
    """
    masks = labels_to_masks(label, num_classes=num_classes)
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


def labels_to_masks(label: UInt8[Tensor, "N H W"], *, num_classes: int) -> Bool[Tensor, "N K H W"]:
    """Split a label map into one mask per class; void is in none."""
    index = torch.arange(num_classes, device=label.device, dtype=label.dtype)
    return label[:, None] == index[:, None, None]
