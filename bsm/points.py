"""Point sampling of PointRend, in training and in inference.

A point is (x, y) in 0..1 over a grid (a RoI or a whole map), whose value there is bilinear between
the centers of its cells. In training most points are where the coarse prediction is most uncertain;
in inference a coarse mask is doubled in size, its most uncertain cells are predicted again, and so
on. Everything has a fixed shape and is drawn from integer hashes: no point depends on the device or
on the rest of the batch.

R grids (RoIs or maps), C channels, P points, Q candidates, H, W sides of a grid
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from bsm.exporting import sample_bilinear
from bsm.sampling import POINTS, draw_uniforms


def sample_points(
    grids: Float[Tensor, "R C H W"], points: Float[Tensor, "R P 2"]
) -> Float[Tensor, "R C P"]:
    """Read grids at points, bilinear, with zeros beyond the border."""
    # In float32: a position in bfloat16 would be off by a cell.
    grid = 2 * points.float()[:, :, None] - 1
    return sample_bilinear(grids.float(), grid)[..., 0].to(grids.dtype)


def sample_nearest(
    grids: Shaped[Tensor, "R H W"], points: Float[Tensor, "R P 2"]
) -> Shaped[Tensor, "R P"]:
    """Read the cell that contains each point."""
    height, width = grids.shape[-2:]
    column = (points[..., 0] * width).long().clamp(0, width - 1)
    row = (points[..., 1] * height).long().clamp(0, height - 1)
    return grids.flatten(1).gather(1, row * width + column)


def make_cell_centers(size_hw: tuple[int, int], *, device: torch.device) -> Float[Tensor, "P 2"]:
    """Make the centers of a grid's cells as points, row by row."""
    y, x = ((torch.arange(side, device=device) + 0.5) / side for side in size_hw)
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([columns, rows], dim=-1).flatten(0, 1)


@torch.no_grad()
def draw_training_points(
    seed: Int64[Tensor, " R"],
    identity: Int64[Tensor, " R"],
    uncertainty_at: Callable[[Tensor], Tensor],
    *,
    num_points: int,
    oversample: int,
    importance: float,
) -> Float[Tensor, "R P 2"]:
    """Draw the points to train on (PointRend, sec. 3.1).

    Args:
        seed: of the sample that each grid belongs to.
        identity: unique number of a grid in its sample, from 0; below 2^31 / (2 (Q + P)).
        uncertainty_at: computes the uncertainty (R, Q) of the prediction at points (R, Q, 2).
        num_points: P.
        oversample: Q / P.
        importance: share of P for the most uncertain of the Q candidates; the rest is uniform.
    """
    num_important = int(importance * num_points)
    num_candidates = oversample * num_points
    count = 2 * (num_candidates + num_points - num_important)
    index = identity[:, None] * count + torch.arange(count, device=identity.device)
    drawn = draw_uniforms(seed, index, purpose=POINTS).view(len(seed), -1, 2)
    candidates, rest = drawn[:, :num_candidates], drawn[:, num_candidates:]
    best = uncertainty_at(candidates).topk(num_important, dim=1).indices
    important = candidates.gather(1, best[..., None].expand(-1, -1, 2))
    return torch.cat([important, rest], dim=1)


def find_uncertain_cells(
    uncertainty: Float[Tensor, "R H W"], *, num_points: int
) -> tuple[Int64[Tensor, "R P"], Float[Tensor, "R P 2"]]:
    """Find the flat indices and the centers of the cells with the highest uncertainty."""
    size_hw = (uncertainty.shape[-2], uncertainty.shape[-1])
    index = uncertainty.flatten(1).topk(min(num_points, size_hw[0] * size_hw[1]), dim=1).indices
    return index, make_cell_centers(size_hw, device=uncertainty.device)[index]


def replace_cells(
    grids: Float[Tensor, "R C H W"], index: Int64[Tensor, "R P"], values: Float[Tensor, "R C P"]
) -> Float[Tensor, "R C H W"]:
    """Put values into the cells with the given flat indices."""
    index = index[:, None].expand(-1, grids.shape[1], -1)
    return grids.flatten(2).scatter(2, index, values.to(grids.dtype)).view_as(grids)
