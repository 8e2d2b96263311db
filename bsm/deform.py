"""What fills the squeezed feature generator's slot (Table 1e): the flow warp.

A flow says for every cell of a feature where to look instead. Its order is (x, y). Its unit is half
a cell, which is one cell of the mask, twice as fine: a flow of (2, 0) reads the cell to the right.
That is the magnitude of the released code, which divides the flow by the size of a grid that is 2
wide, so weights mean here what they mean there.

The released code lays its grid from corner cell to corner cell (align_corners=True) and then
samples as if from edge to edge (align_corners=False), so even without a flow it stretches the
feature by W / (W - 1) and darkens the border: edges come out at 0.5, corners at 0.25. Ours is edge
to edge throughout, and leaves the feature alone when the flow is zero, to the last bit. `legacy` is
theirs.

    R rois, D channels, H, W size of a feature.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def flow_warp(
    x: Float[Tensor, "R D H W"], flow: Float[Tensor, "R 2 H W"], *, legacy: bool = False
) -> Float[Tensor, "R D H W"]:
    """Read each cell from where its flow points, bilinear; beyond the border is zero (eq. 2).

    Args:
        x: features.
        flow: (x, y), in half cells.
        legacy: sample on the released code's grid.
    """
    height, width = x.shape[-2:]
    shift = flow.float().permute(0, 2, 3, 1)
    if legacy:
        grid = _grid(_corner_to_corner(width, x.device), _corner_to_corner(height, x.device))
        return _sample(x, grid + _divide(shift, width, height))
    # In a canvas with sides of a power of two, the centers of cells are floats without rounding,
    # and zeros to the right and below are what lies beyond the border anyway.
    wide, high = _power_of_two(width), _power_of_two(height)
    grid = _grid(_centers(width, wide, x.device), _centers(height, high, x.device))
    canvas = F.pad(x, (0, wide - width, 0, high - height))
    return _sample(canvas, grid + _divide(shift, wide, high))


def _sample(x: Tensor, grid: Tensor) -> Tensor:
    # In float32 whatever autocast says: a position in bfloat16 is off by a tenth of a cell.
    sampled = F.grid_sample(
        x.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )
    return sampled.to(x.dtype)


def _divide(shift: Tensor, width: int, height: int) -> Tensor:
    return torch.stack([shift[..., 0] / width, shift[..., 1] / height], dim=-1)


def _grid(x: Tensor, y: Tensor) -> Tensor:
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([columns, rows], dim=-1)


def _corner_to_corner(side: int, device: torch.device) -> Tensor:
    return torch.linspace(-1, 1, side, device=device)


def _centers(side: int, canvas_side: int, device: torch.device) -> Tensor:
    cell = torch.arange(side, device=device, dtype=torch.float32)
    return (2 * cell + 1) / canvas_side - 1


def _power_of_two(side: int) -> int:
    return 1 << (side - 1).bit_length()
