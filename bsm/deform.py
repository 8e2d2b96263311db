"""What fills the squeezed feature generator's slot (Table 1e): a flow warp, DCNv2, DGMN or nothing.

Each takes the feature that a tower made (F'_sum) and the feature of the RoI, and gives the squeezed
feature. Which variant the authors gave to DCNv2 and DGMN is not released: DCNv2 predicts its offsets
from both features, as the flow does; DGMN takes one input by its design, and gets the tower's.

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

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

_TAPS = 9
"""Of a 3 x 3 kernel."""


class Deformed(NamedTuple):
    """What a slot gives."""

    feature: Float[Tensor, "R D H W"]
    flow: Float[Tensor, "R 2 H W"] | None
    """Where each cell was read from, for the flow warp alone: (x, y) in half cells."""


class FlowWarp(nn.Module):
    """The paper's: one 3 x 3 convolution on both features predicts a flow, and a warp follows it.

    Args:
        channels: of either feature.
        bias: of the convolution.
        zero_flow: start from the feature as it is; else torch's own initialization.
        legacy: the released code's grid.
    """

    def __init__(
        self, channels: int, *, bias: bool = False, zero_flow: bool = True, legacy: bool = False
    ) -> None:
        super().__init__()
        self.legacy = legacy
        self.flow = nn.Conv2d(2 * channels, 2, 3, padding=1, bias=bias)
        if zero_flow:
            nn.init.zeros_(self.flow.weight)
        if self.flow.bias is not None:
            nn.init.zeros_(self.flow.bias)

    def forward(
        self, tower: Float[Tensor, "R D H W"], roi_features: Float[Tensor, "R D H W"]
    ) -> Deformed:
        """Warp the tower's feature."""
        flow = self.flow(torch.cat([tower, roi_features], dim=1))
        return Deformed(flow_warp(tower, flow, legacy=self.legacy), flow)


class ModulatedDeformConv(nn.Module):
    """DCNv2: a 3 x 3 convolution that looks up each of its taps elsewhere, each with a weight.

    Offsets and weights start at zero and one half, as in its paper: a plain convolution, halved.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.offset = nn.Conv2d(2 * channels, 3 * _TAPS, 3, padding=1)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)  # type: ignore[arg-type]

    def forward(
        self, tower: Float[Tensor, "R D H W"], roi_features: Float[Tensor, "R D H W"]
    ) -> Deformed:
        """Convolve the tower's feature."""
        found = self.offset(torch.cat([tower, roi_features], dim=1)).float()
        offset, mask = found[:, : 2 * _TAPS], found[:, 2 * _TAPS :].sigmoid()
        out = deform_conv2d(tower.float(), offset, self.weight.float(), padding=1, mask=mask)
        return Deformed(out.to(tower.dtype), None)


class DynamicGraph(nn.Module):
    """DGMN (Zhang et al. 2020): each cell gathers from a few others, with weights of its own.

    Four branches look at 3 x 3 neighborhoods with dilations of 1 to 12. In each, a convolution
    predicts for every cell where its nine taps are, how much each counts, and a filter over them
    for each group of channels.
    """

    _HIDDEN, _GROUPS, _DILATIONS = 64, 4, (1, 4, 8, 12)

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = self._HIDDEN
        # For each tap a filter in every group, two offsets and a weight.
        kernel = _TAPS * (self._GROUPS + 3)
        self.squeeze = _norm_relu(channels, hidden)
        kernels = [nn.Conv2d(hidden, kernel, 3, padding=d, dilation=d) for d in self._DILATIONS]
        for each in kernels:
            nn.init.zeros_(each.weight)
            nn.init.zeros_(each.bias)  # type: ignore[arg-type]
        self.kernels = nn.ModuleList(kernels)
        self.merge = _norm_relu(hidden * (1 + len(self._DILATIONS)), hidden)
        self.expand = _norm_relu(hidden, channels)

    def forward(
        self,
        tower: Float[Tensor, "R D H W"],
        roi_features: Float[Tensor, "R D H W"],
    ) -> Deformed:
        """Add to the tower's feature what its cells gather."""
        x = self.squeeze(tower)
        parts = [x]
        for kernel, dilation in zip(self.kernels, self._DILATIONS, strict=True):
            parts.append(self._gather(x, kernel(x).float(), dilation=dilation))
        gathered: Tensor = self.expand(self.merge(torch.cat(parts, dim=1)))
        return Deformed(tower + gathered, None)

    def _gather(self, x: Tensor, kernel: Tensor, *, dilation: int) -> Tensor:
        groups = self._GROUPS
        taps, offset, weight = torch.split(kernel, [_TAPS * groups, 2 * _TAPS, _TAPS], dim=1)
        shape = (len(x), groups, _TAPS, *x.shape[-2:])
        # Filter and weight of a tap act on it as a product, so both are the convolution's mask.
        mask = taps.reshape(shape).softmax(dim=2) * weight.sigmoid()[:, None]
        ones = x.new_ones(self._HIDDEN, 1, 3, 3, dtype=torch.float32)
        gathered: Tensor = deform_conv2d(
            x.float(),
            offset.repeat(1, groups, 1, 1),
            ones,
            padding=dilation,
            dilation=dilation,
            mask=mask.flatten(1, 2),
        )
        return gathered.to(x.dtype)


def build_slot(
    warp: Literal["flow", "dcnv2", "dgmn"],
    channels: int,
    *,
    bias: bool,
    zero_flow: bool,
    legacy: bool,
) -> FlowWarp | ModulatedDeformConv | DynamicGraph:
    """Build what fills the slot; the last three arguments are the flow warp's."""
    match warp:
        case "flow":
            return FlowWarp(channels, bias=bias, zero_flow=zero_flow, legacy=legacy)
        case "dcnv2":
            return ModulatedDeformConv(channels)
        case "dgmn":
            return DynamicGraph(channels)


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


def _norm_relu(in_channels: int, channels: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, 1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.GroupNorm(math.gcd(channels, 32), channels), nn.ReLU())


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
