"""Targets of label maps by morphology, class by class: the reference for the field.

Unlike the field, it costs (kernel side) x (classes) x (pixels) in every step.

N images, K classes, H, W size of a label map
"""

import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from bsm.semantic.field import VOID, ClassTargets, labels_to_masks


def class_targets_from_labels(
    label: UInt8[Tensor, "N H W"], *, num_classes: int, kernel_size: int, unite_boundary: bool
) -> ClassTargets:
    """Dilate and erode the mask of each class (eq. 3), without outlines at void and the border.

    Void counts as outside where a class is dilated and as inside where it is eroded, also for the
    3 x 3 Laplacian (the mask minus its erosion); then it is removed from every target. The border
    of the map neither erodes nor makes boundary. In the released code a RoI's border does make
    boundary; but the pixels beyond a crop are unknown, and most often of the same class.

    Args:
        label: classes from 0, and 255 for void.
        num_classes: K.
        kernel_size: side of the dilation and erosion kernel in pixels, odd (sec. 3.2: 15).
        unite_boundary: unite both bands with the boundary, as the released code does.
    """
    valid = (label != VOID)[:, None]
    mask = labels_to_masks(label, num_classes=num_classes)
    outside = ~mask & valid
    boundary = mask & _dilate(outside, 3)
    contraction = outside & _dilate(mask, kernel_size)
    # An erosion is a dilation of the outside.
    expansion = mask & _dilate(outside, kernel_size)
    if unite_boundary:
        contraction, expansion = contraction | boundary, expansion | boundary
    return ClassTargets(boundary, contraction, expansion, mask.flatten(2).any(2), valid[:, 0])


def _dilate(masks: Tensor, kernel_size: int) -> Tensor:
    # max_pool2d pads with -inf, so the border adds nothing. A square is a row, then a column.
    reach = kernel_size // 2
    row = F.max_pool2d(masks.float(), (1, kernel_size), stride=1, padding=(0, reach))
    return F.max_pool2d(row, (kernel_size, 1), stride=1, padding=(reach, 0)) > 0
