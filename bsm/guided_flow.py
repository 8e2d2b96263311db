"""Guided flow: the squeeze field supervises where the two warps look.

The paper lets the flows find their way through the losses of the masks. But what it hopes for is
known: a cell outside the object should read from the outline further in, a cell inside from the
outline further out, and the shortest way to the outline from any cell is

    -d * gradient(d) / |gradient(d)|

with d the signed distance to the outline, positive inside. So the contraction flow is held to that
way in the band outside the outline, the expansion flow in the band inside, by smooth L1 in cells of
the feature. It costs nothing at inference.

d is Euclidean: the gradient of the chessboard distance points along an axis or a diagonal and
nowhere else. It is measured anew on each RoI's own grid, which needs no loop: a square of 28 x 28
cells has so few columns and rows that the exact transform is two small minima, first along rows,
then along columns.

    R rois, M side of a mask, m side of the feature, half of M.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from bsm.configs.shared import GuidedFlowConfig
from bsm.squeeze import Flows

_LEAST_SLOPE = 0.3
"""Where the distance has no clear direction, as on the ridge of a thin object, the way is shorter
than the distance rather than long into a random direction."""


class FlowTargets(NamedTuple):
    """What guides the flows of R rois."""

    way: Float[Tensor, "R 2 m m"]
    """From each cell to the outline, (x, y) in cells of the feature."""
    contraction: Float[Tensor, "R m m"]
    """1 in the band outside the outline, where the contraction flow is supervised."""
    expansion: Float[Tensor, "R m m"]
    """1 in the band inside."""


def flow_targets(masks: Float[Tensor, "R M M"], *, reach: float) -> FlowTargets:
    """Find the shortest way to the outline, on a grid half as fine as the masks.

    Args:
        masks: 0/1, as the mask target is; M is even.
        reach: how far from the outline the bands go, in cells of the feature.
    """
    distance = F.avg_pool2d(signed_distance(masks)[:, None], 2) / 2
    # A smooth distance has a smooth direction: one mean over 3 x 3 cells takes the stairs away.
    smooth = F.avg_pool2d(F.pad(distance, (1, 1, 1, 1), mode="replicate"), kernel_size=3, stride=1)[
        :, 0
    ]
    slope_y, slope_x = torch.gradient(smooth, dim=(1, 2))
    slope = torch.stack([slope_x, slope_y], dim=1)
    norm = slope.norm(dim=1, keepdim=True).clamp(min=_LEAST_SLOPE)
    near = distance[:, 0].abs() < reach
    inside = distance[:, 0] > 0
    return FlowTargets(-distance * slope / norm, (near & ~inside).float(), (near & inside).float())


def signed_distance(masks: Float[Tensor, "R M M"]) -> Float[Tensor, "R M M"]:
    """Measure each cell's Euclidean distance to the outline, in cells, positive inside.

    The outline lies half a cell from the centers of the cells on either side of it. A mask without
    an outline on its grid is farther from one than any cell: 2 M.
    """
    inside = masks > 0.5
    to_outside = _distance_to(~inside) - 0.5
    to_inside = _distance_to(inside) - 0.5
    return torch.where(inside, to_outside, -to_inside)


def guided_flow_losses(
    flows: Flows,
    targets: FlowTargets,
    *,
    config: GuidedFlowConfig,
    weights: Float[Tensor, " R"] | None = None,
) -> dict[str, Tensor]:
    """Hold each flow to the way to the outline, in its own band.

    Args:
        flows: of the squeeze; a flow that is left out has no loss.
        targets: from `flow_targets`.
        config: weight of the losses.
        weights: 1 for a real roi, 0 for an empty slot; without them every roi is real.

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
        off = F.smooth_l1_loss(flow.float() / 2, targets.way, reduction="none").mean(1)
        losses[f"loss_flow_{name}"] = config.weight * (off * band).sum() / band.sum().clamp(min=1.0)
    return losses


def _distance_to(cells: Tensor) -> Tensor:
    """The distance of each center to the nearest center of the cells that are true."""
    side = cells.shape[-1]
    place = torch.arange(side, device=cells.device, dtype=torch.float32)
    apart = (place[:, None] - place).square()  # (M, M)
    # No two cells of the grid are as far apart as this.
    far = 4.0 * side * side
    in_row = torch.where(cells[:, :, None, :], apart[None, None], far).amin(dim=-1)  # (R, M, M)
    both = in_row[:, None, :, :] + apart[None, :, :, None]  # (R, row, other row, column)
    return both.amin(dim=2).clamp(max=far).sqrt()
