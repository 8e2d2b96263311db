"""The signed distance to the outline of masks, up to a reach, without a loop over masks.

R crops, S side of a crop
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F


def clipped_distance(masks: Shaped[Tensor, "R S S"], *, reach: int) -> Float[Tensor, "R S S"]:
    """Measure each cell's Euclidean distance to the outline, in cells, positive inside.

    The outline is half a cell from the centers of the cells on either side of it. Cells beyond the
    crop do not exist: its border is no outline.

    Args:
        masks: 0/1 or bool.
        reach: distances are clipped to this.
    """
    inside = masks.bool()
    sides = torch.cat([~inside, inside])
    to_outside, to_inside = (_distance_to(sides, reach=reach) - 0.5).clamp(max=reach).chunk(2)
    return torch.where(inside, to_outside, -to_inside)


def _distance_to(cells: Tensor, *, reach: int) -> Tensor:
    """Measure the distance of each center to the nearest center of the cells that are true.

    Along rows from the last and the next such cell, then down columns as a minimum over shifts.
    """
    rows, side = cells.shape[-2:]
    far = reach + 1
    position = torch.arange(side, device=cells.device, dtype=torch.float32)
    before = torch.where(cells, position, -float(far)).cummax(dim=-1).values
    after = torch.where(cells, -position, -float(side + far)).flip(-1).cummax(dim=-1).values
    square = torch.minimum(position - before, -after.flip(-1) - position).clamp(max=far).square()
    padded = F.pad(square, (0, 0, far, far), value=float(far * far))
    best = square
    for shift in range(1, far):
        above, below = padded[:, far - shift :][:, :rows], padded[:, far + shift :][:, :rows]
        best = torch.minimum(best, torch.minimum(above, below) + shift * shift)
    return best.sqrt()
