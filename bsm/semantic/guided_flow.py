"""Guided flow on label maps: both flows lead to the nearest border, from either side of it.

Around an instance there is an outside, where the contraction flow looks inwards, and an inside,
where the expansion flow looks outwards (bsm/guided_flow.py). On a label map every pixel near a
border is both: inside its own class, whose band the expansion feature predicts there, and outside
its neighbor, whose band the contraction feature predicts there. The outline that the one must find
and the outline that the other must find are the same line, the nearest border, and the shortest way
to it is the same way. So both flows are held to it wherever a border is near. They stay two in what
they bring along: one names the neighbor, the other the pixel's own class. A flow for each class,
in which each class would have its own outside, is no choice: the paper's feature and its flow are
one for all classes. Nor would an order of classes be, in which the higher one is inside: it would
give a border between two classes a direction that nothing in the image shows.

The way is measured on the labels of the crop, in the step. The stored chessboard distance would be
at hand, but no direction: its gradient points along an axis or a diagonal. A border passes through
the corners at which pixels of different classes meet, neither of them void: exactly where it runs
along an axis, within a pixel or two of 8 where it is a stair. Only the centers of feature cells,
which are such corners themselves, ask for their nearest one, and only within reach. So this exact
Euclidean transform is two small minima, along rows and then along columns: no loop, and less work
than one convolution.

    N images, H, W size of the label map, h, w size of the feature, T points in a window
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from bsm.guided_flow import FlowTargets
from bsm.semantic.field import VOID


def border_flow_targets(
    label: UInt8[Tensor, "N H W"], *, size_hw: tuple[int, int], stride: int, reach: float
) -> FlowTargets:
    """Find the way from the center of each feature cell to the nearest border.

    Args:
        label: classes, and 255 for void.
        size_hw: cells of the feature; what they cover beyond the label map is void.
        stride: pixels along a side of a cell.
        reach: how far from a border the flows are supervised, in cells.

    Returns:
        the way, and for both flows the same band: the cells whose center is on no void pixel and
        nearer than `reach` to a border.
    """
    height, width = (stride * cells for cells in size_hw)
    beyond = (0, width - label.shape[-1], 0, height - label.shape[-2])
    label = F.pad(label, beyond, value=VOID)
    way = _way_to_nearest(_border_corners(label), stride=stride, reach=reach) / stride
    # The center of a cell is the corner between the four pixels in its middle.
    middle = slice(stride // 2 - 1, stride // 2 + 1)
    cells = (label != VOID).reshape(len(label), size_hw[0], stride, size_hw[1], stride)
    known = cells[:, :, middle, :, middle].all(4).all(2)
    near = known & (way.norm(dim=1) < reach)
    return FlowTargets(torch.where(near[:, None], way, 0.0), near.float(), near.float())


def _border_corners(label: Tensor) -> Tensor:
    """Mark the pixels (N, H, W) at whose lower right corner two classes meet; void is none."""
    lowest, highest = label, torch.where(label == VOID, 0, label)
    for dim in (1, 2):
        pairs = label.shape[dim] - 1
        lowest = torch.minimum(lowest.narrow(dim, 0, pairs), lowest.narrow(dim, 1, pairs))
        highest = torch.maximum(highest.narrow(dim, 0, pairs), highest.narrow(dim, 1, pairs))
    return F.pad(lowest < highest, (0, 1, 0, 1))


def _way_to_nearest(corners: Tensor, *, stride: int, reach: float) -> Tensor:
    """Lead from each cell's center to the nearest of the corners, as (x, y) in pixels.

    Where none is in the window, which is not smaller than the reach, the way is infinite.
    """
    beyond = max(math.ceil(stride * (reach - 0.5)), 0)
    taps = stride + 2 * beyond
    # From the center, which is the lower right corner of the pixel before the middle.
    offset = torch.arange(taps, device=corners.device) - (beyond + stride // 2 - 1)
    square = offset.square().float()
    windows = F.pad(corners, (beyond, beyond)).unfold(2, taps, stride)  # (N, H, w, T)
    in_row = torch.where(windows, square, math.inf).min(dim=-1)
    x = F.pad(offset[in_row.indices], (0, 0, beyond, beyond)).unfold(1, taps, stride)
    columns = F.pad(in_row.values, (0, 0, beyond, beyond), value=math.inf)
    both = (columns.unfold(1, taps, stride) + square).min(dim=-1)  # (N, h, w)
    x = x.gather(-1, both.indices[..., None])[..., 0]
    way = torch.stack([x, offset[both.indices]], dim=1).float()
    return torch.where(both.values.isfinite()[:, None], way, math.inf)
