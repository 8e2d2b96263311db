"""Guided flow: supervise the flows of the two warps with the displacement to the outline.

In the paper only the mask losses train the flows. But the flow it hopes for is known: a cell
outside the object should read from the outline further in, a cell inside from the outline further
out, and the shortest displacement from any cell to the outline is

    -d * gradient(d) / |gradient(d)|

with d the signed distance to the outline, positive inside. So a smooth L1 loss, in cells of the
feature, pulls the contraction flow to it in the band outside the outline and the expansion flow in
the band inside. It costs nothing at inference.

d is Euclidean: the gradient of the chessboard distance points only along an axis or a diagonal. It
is computed on each RoI's own grid, without a loop: a grid of 28 x 28 cells is so small that the
exact transform is two minima, first along rows, then along columns.

R rois, M side of a mask, m side of the feature, half of M
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from bsm.configs.shared import GuidedFlowConfig
from bsm.squeeze import Flows

_MIN_SLOPE = 0.3
"""Where the distance has no clear direction, as on the ridge of a thin object, the displacement is
too short rather than long in a random direction."""


class FlowTargets(NamedTuple):
    """The targets of the flows of R rois."""

    displacement: Float[Tensor, "R 2 m m"]
    """From each cell to the outline, (x, y) in cells of the feature."""
    contraction: Float[Tensor, "R m m"]
    """1 in the band outside the outline, where the contraction flow is supervised."""
    expansion: Float[Tensor, "R m m"]
    """1 in the band inside."""


def make_flow_targets(masks: Float[Tensor, "R M M"], *, reach: float) -> FlowTargets:
    """Compute the shortest displacement to the outline, on a grid half as fine as the masks.

    Args:
        masks: 0/1, as the mask target is; M is even.
        reach: width of the bands on either side of the outline, in cells of the feature.
    """
    distance = F.avg_pool2d(signed_distance(masks)[:, None], 2) / 2
    return flow_targets_from_distance(distance[:, 0], reach=reach)


def flow_targets_from_distance(distance: Float[Tensor, "R m m"], *, reach: float) -> FlowTargets:
    """Compute the shortest displacement to the outline from the signed distance to it.

    Args:
        distance: in cells of the feature, positive inside.
        reach: width of the bands on either side of the outline, in the same cells.
    """
    # A smooth distance has a smooth direction: a mean over 3 x 3 cells removes the stairs.
    padded = F.pad(distance[:, None], (1, 1, 1, 1), mode="replicate")
    smooth = F.avg_pool2d(padded, kernel_size=3, stride=1)[:, 0]
    slope_y, slope_x = torch.gradient(smooth, dim=(1, 2))
    slope = torch.stack([slope_x, slope_y], dim=1)
    norm = slope.norm(dim=1, keepdim=True).clamp(min=_MIN_SLOPE)
    near, inside = distance.abs() < reach, distance > 0
    return FlowTargets(
        -distance[:, None] * slope / norm, (near & ~inside).float(), (near & inside).float()
    )


def signed_distance(masks: Float[Tensor, "R M M"]) -> Float[Tensor, "R M M"]:
    """Measure each cell's Euclidean distance to the outline, in cells, positive inside.

    The outline is half a cell from the centers of the cells on either side of it. In a mask without
    an outline the distance is 2 M, farther than any cell.
    """
    inside = masks > 0.5
    to_outside = _measure_distance(~inside) - 0.5
    to_inside = _measure_distance(inside) - 0.5
    return torch.where(inside, to_outside, -to_inside)


def guided_flow_losses(
    flows: Flows,
    targets: FlowTargets,
    *,
    config: GuidedFlowConfig,
    weights: Float[Tensor, " R"] | None = None,
) -> dict[str, Tensor]:
    """Compare each flow with the displacement to the outline, in its own band.

    Args:
        flows: of the squeeze; a flow that is left out has no loss.
        targets: from `make_flow_targets`.
        config: weight of the losses.
        weights: 1 for a real roi, 0 for an empty slot; by default every roi is real.

    Returns:
        the weighted losses by name: loss_flow_contraction, loss_flow_expansion.
    """
    losses = {}
    bands = {"contraction": targets.contraction, "expansion": targets.expansion}
    for name, flow in flows._asdict().items():
        if flow is None:
            continue
        band = bands[name] if weights is None else bands[name] * weights[:, None, None]
        # A flow counts half cells (bsm/deform.py).
        error = F.smooth_l1_loss(flow.float() / 2, targets.displacement, reduction="none").mean(1)
        total = (error * band).sum()
        losses[f"loss_flow_{name}"] = config.weight * total / band.sum().clamp(min=1.0)
    return losses


def _measure_distance(cells: Tensor) -> Tensor:
    """Measure the distance of each center to the nearest center of the cells that are true."""
    side = cells.shape[-1]
    position = torch.arange(side, device=cells.device, dtype=torch.float32)
    square = (position[:, None] - position).square()  # (M, M)
    # No two cells of the grid are as far apart as this.
    far = 4.0 * side * side
    in_row = torch.where(cells[:, :, None, :], square[None, None], far).amin(dim=-1)  # (R, M, M)
    both = in_row[:, None, :, :] + square[None, :, :, None]  # (R, row, other row, column)
    return both.amin(dim=2).clamp(max=far).sqrt()
