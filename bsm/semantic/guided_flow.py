"""Guided flow on label maps: both flows point to the nearest border, from either side of it.

Around an instance, the contraction flow points inward from the outside and the expansion flow
outward from the inside (bsm/guided_flow.py). On a label map every pixel near a border is both:
inside its own class, whose band the expansion feature predicts there, and outside its neighbor,
whose band the contraction feature predicts there. Both outlines are the same line, the nearest
border, with the same shortest displacement. So both flows are trained on it wherever a border is
near. They differ in what they read: one the neighbor's class, the other the pixel's own. A flow per
class, each with its own outside, is not possible: the paper has one feature and one flow for all
classes. An order of classes, in which the higher one is inside, would give a border a direction
that nothing in the image shows.

The displacement is computed on the labels of the crop, in the training step. The stored chessboard
distance has no useful direction: its gradient points along an axis or a diagonal. A border passes
through the corners where pixels of different classes meet, neither of them void: exactly where it
runs along an axis, and within one or two of a cell's 8 pixels where it is a stair. Only the centers
of feature cells, which are such corners too, search for the nearest one, and only within reach. So
this exact Euclidean transform is two small minima, along rows and then along columns: no loop, and
less work than one convolution.

N images, H, W size of the label map, h, w size of the feature, T points in a window
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from bsm.guided_flow import FlowTargets
from bsm.semantic.field import VOID


def make_border_flow_targets(
    label: UInt8[Tensor, "N H W"], *, size_hw: tuple[int, int], stride: int, reach: float
) -> FlowTargets:
    """Compute the displacement from the center of each feature cell to the nearest border.

    Args:
        label: classes, and 255 for void.
        size_hw: cells of the feature; beyond the label map they are void.
        stride: pixels along a side of a cell.
        reach: distance from a border up to which flows are supervised, in cells.

    Returns:
        the displacement, and the same band for both flows: cells whose center touches no void
        pixel and is closer than `reach` to a border.
    """
    height, width = (stride * cells for cells in size_hw)
    beyond = (0, width - label.shape[-1], 0, height - label.shape[-2])
    label = F.pad(label, beyond, value=VOID)
    corners = _mark_border_corners(label)
    displacement = _find_displacement(corners, stride=stride, reach=reach) / stride
    # The center of a cell is the corner between the four pixels in its middle.
    middle = slice(stride // 2 - 1, stride // 2 + 1)
    cells = (label != VOID).reshape(len(label), size_hw[0], stride, size_hw[1], stride)
    known = cells[:, :, middle, :, middle].all(4).all(2)
    near = known & (displacement.norm(dim=1) < reach)
    displacement = torch.where(near[:, None], displacement, 0.0)
    return FlowTargets(displacement, near.float(), near.float())


def _mark_border_corners(label: Tensor) -> Tensor:
    """Mark the pixels (N, H, W) at whose lower right corner two classes other than void meet."""
    lowest, highest = label, torch.where(label == VOID, 0, label)
    for dim in (1, 2):
        pairs = label.shape[dim] - 1
        lowest = torch.minimum(lowest.narrow(dim, 0, pairs), lowest.narrow(dim, 1, pairs))
        highest = torch.maximum(highest.narrow(dim, 0, pairs), highest.narrow(dim, 1, pairs))
    return F.pad(lowest < highest, (0, 1, 0, 1))


def _find_displacement(corners: Tensor, *, stride: int, reach: float) -> Tensor:
    """Find the displacement (x, y) in pixels from each cell's center to the nearest corner.

    It is infinite if no corner is in the window, which is at least as large as the reach.
    """
    beyond = max(math.ceil(stride * (reach - 0.5)), 0)
    taps = stride + 2 * beyond
    # Relative to the center, which is the lower right corner of the pixel before the middle.
    offset = torch.arange(taps, device=corners.device) - (beyond + stride // 2 - 1)
    square = offset.square().float()
    windows = F.pad(corners, (beyond, beyond)).unfold(2, taps, stride)  # (N, H, w, T)
    in_row = torch.where(windows, square, math.inf).min(dim=-1)
    x = F.pad(offset[in_row.indices], (0, 0, beyond, beyond)).unfold(1, taps, stride)
    columns = F.pad(in_row.values, (0, 0, beyond, beyond), value=math.inf)
    both = (columns.unfold(1, taps, stride) + square).min(dim=-1)  # (N, h, w)
    x = x.gather(-1, both.indices[..., None])[..., 0]
    displacement = torch.stack([x, offset[both.indices]], dim=1).float()
    return torch.where(both.values.isfinite()[:, None], displacement, math.inf)
