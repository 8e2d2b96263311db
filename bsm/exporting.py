"""The other computations of a model while torch.export traces it: only shapes that are known.

A graph has no loop over objects and no branch on a value, so an exported model takes the paths that
a GPU takes: every slot is computed, and none is counted. Bilinear samples are sums of four gathers,
because runtimes do not agree on ONNX's GridSample (TensorRT fuses it into wrong numbers).

R grids, C channels, H, W their sides, h, w sides of the sampling positions
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def is_exporting() -> bool:
    """Tell whether torch.export traces the model."""
    return bool(torch.compiler.is_exporting())


def sample_bilinear(
    x: Float[Tensor, "R C H W"], grid: Float[Tensor, "R h w 2"]
) -> Float[Tensor, "R C h w"]:
    """Sample at positions (x, y) from edge to edge, -1 to 1, with zeros beyond the border.

    It is grid_sample without aligned corners; in an exported graph it is `gather_bilinear`.
    """
    if is_exporting():
        return gather_bilinear(x, grid)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def gather_bilinear(
    x: Float[Tensor, "R C H W"], grid: Float[Tensor, "R h w 2"]
) -> Float[Tensor, "R C h w"]:
    """Do the same as `sample_bilinear` by gathering the four cells around each position."""
    height, width = x.shape[-2:]
    column = ((grid[..., 0] + 1) * width - 1) / 2
    row = ((grid[..., 1] + 1) * height - 1) / 2
    return gather_cells(x, column, row)


def gather_cells(
    x: Float[Tensor, "R C H W"], column: Float[Tensor, "R h w"], row: Float[Tensor, "R h w"]
) -> Float[Tensor, "R C h w"]:
    """Read at positions in cells, bilinear; 0 is the center of the first cell, beyond are zeros."""
    rois, channels, height, width = x.shape
    # One row for each cell, so that a sample copies whole rows.
    cells = x.permute(0, 2, 3, 1).reshape(rois * height * width, channels)
    first = torch.arange(rois, device=x.device)[:, None, None] * (height * width)
    left, top = column.floor(), row.floor()
    sampled = x.new_zeros(())
    for at_x, weight_x in ((left, left + 1 - column), (left + 1, column - left)):
        for at_y, weight_y in ((top, top + 1 - row), (top + 1, row - top)):
            inside = (at_x >= 0) & (at_x < width) & (at_y >= 0) & (at_y < height)
            index = at_y.clamp(0, height - 1) * width + at_x.clamp(0, width - 1)
            chosen = cells.index_select(0, (first + index.long()).flatten())
            weight = weight_x * weight_y * inside
            sampled = sampled + chosen.view(*weight.shape, channels) * weight[..., None]
    return sampled.permute(0, 3, 1, 2)
