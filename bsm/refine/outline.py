"""The signed distance to the outline of masks, up to a reach, without a loop over masks.

R crops, S side of a crop
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


def clipped_distance(masks: Shaped[Tensor, "R S S"], *, reach: int) -> Float[Tensor, "R S S"]:
    """Measure each cell's Euclidean distance to the outline, in cells, positive inside.

    The outline is half a cell from the centers of the cells on either side of it. Cells beyond the
    crop do not exist: its border is no outline.

    Args:
        masks: 0/1 or bool.
        reach: distances are clipped to this.
    """
    inside = masks.bool()
    square = _square_distance_to(torch.cat([~inside, inside]), reach=reach)
    to_outside, to_inside = (square.float().sqrt() - 0.5).clamp(max=reach).chunk(2)
    return torch.where(inside, to_outside, -to_inside)


def _square_distance_to(cells: Tensor, *, reach: int) -> Tensor:
    """Measure the squared distance of each center to the nearest center of cells that are true.

    Along columns and then rows, each as a minimum over shifts. In int16, as a CPU computes twice as
    many of these at once.
    """
    far = reach + 1
    dtype = torch.int16 if 2 * far * far < 2**15 else torch.int32
    square = (~cells).to(dtype) * (far * far)
    for dim in (1, 2):
        best = square.clone()
        side = cells.shape[dim]
        for shift in range(1, min(far, side)):
            moved = square + shift * shift
            for start in (0, shift):
                here = best.narrow(dim, shift - start, side - shift)
                torch.minimum(here, moved.narrow(dim, start, side - shift), out=here)
        square = best
    return square
