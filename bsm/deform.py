"""Warps of the squeezed feature generator (Table 1e): a flow warp, DCNv2 or DGMN.

Each takes a tower's feature (F'_sum) and the RoI feature, and returns the squeezed feature. The
authors did not release which features DCNv2 and DGMN read. Here DCNv2 predicts its offsets from
both, as the flow warp does; DGMN has one input by design and reads the tower's feature.

A flow tells each cell of a feature where to read instead. Its order is (x, y). Its unit is half a
cell, which is one cell of the mask, twice as fine: a flow of (2, 0) reads the cell to the right.
That is the scale of the released code, which divides the flow by the size of a grid that is 2 wide,
so weights mean the same here and there.

The released code builds its grid from corner cell to corner cell (align_corners=True) and samples
it from edge to edge (align_corners=False), so even a zero flow stretches the feature by W / (W - 1)
and darkens the border: edges come out at 0.5, corners at 0.25. Ours is edge to edge throughout, and
a zero flow leaves the feature unchanged, to the last bit. `legacy` selects the released grid.

R rois, D channels, H, W size of a feature
"""

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from bsm.exporting import gather_cells, is_exporting, sample_bilinear

_TAPS = 9
"""Of a 3 x 3 kernel."""


class WarpOutput(NamedTuple):
    """A squeezed feature, and the flow that made it."""

    feature: Float[Tensor, "R D H W"]
    flow: Float[Tensor, "R 2 H W"] | None
    """Where each cell was read, (x, y) in half cells; only the flow warp has one."""


class FlowWarp(nn.Module):
    """The paper's warp: a 3 x 3 convolution on both features predicts a flow.

    Args:
        channels: of either feature.
        bias: of the convolution.
        zero_flow: start without a shift; else torch's own initialization.
        legacy: sample on the released code's grid.
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
    ) -> WarpOutput:
        """Warp the tower's feature."""
        flow = self.flow(torch.cat([tower, roi_features], dim=1))
        return WarpOutput(flow_warp(tower, flow, legacy=self.legacy), flow)


class ModulatedDeformConv(nn.Module):
    """DCNv2: a 3 x 3 convolution with a predicted offset and weight for each tap.

    Offsets start at 0 and weights at one half, as in its paper: a plain convolution, halved.
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
    ) -> WarpOutput:
        """Convolve the tower's feature."""
        predicted = self.offset(torch.cat([tower, roi_features], dim=1)).float()
        offset, mask = predicted[:, : 2 * _TAPS], predicted[:, 2 * _TAPS :].sigmoid()
        out = deform_conv2d(tower.float(), offset, self.weight.float(), padding=1, mask=mask)
        return WarpOutput(out.to(tower.dtype), None)


class DynamicGraph(nn.Module):
    """DGMN (Zhang et al. 2020): each cell gathers a few others with predicted weights.

    Four branches look at 3 x 3 neighborhoods with dilations of 1 to 12. In each, a convolution
    predicts for every cell the positions and weights of its nine taps, and a filter over them for
    each group of channels.
    """

    _HIDDEN, _GROUPS, _DILATIONS = 64, 4, (1, 4, 8, 12)

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = self._HIDDEN
        # For each tap a filter in every group, two offsets and a weight.
        kernel = _TAPS * (self._GROUPS + 3)
        self.squeeze = _build_conv_norm_relu(channels, hidden)
        kernels = [nn.Conv2d(hidden, kernel, 3, padding=d, dilation=d) for d in self._DILATIONS]
        for layer in kernels:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.kernels = nn.ModuleList(kernels)
        self.merge = _build_conv_norm_relu(hidden * (1 + len(self._DILATIONS)), hidden)
        self.expand = _build_conv_norm_relu(hidden, channels)

    def forward(
        self,
        tower: Float[Tensor, "R D H W"],
        roi_features: Float[Tensor, "R D H W"],
    ) -> WarpOutput:
        """Add the gathered cells to the tower's feature."""
        x = self.squeeze(tower)
        parts = [x]
        for kernel, dilation in zip(self.kernels, self._DILATIONS, strict=True):
            parts.append(self._gather(x, kernel(x).float(), dilation=dilation))
        gathered: Tensor = self.expand(self.merge(torch.cat(parts, dim=1)))
        return WarpOutput(tower + gathered, None)

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


def build_warp(
    warp: Literal["flow", "dcnv2", "dgmn"],
    channels: int,
    *,
    bias: bool,
    zero_flow: bool,
    legacy: bool,
) -> FlowWarp | ModulatedDeformConv | DynamicGraph:
    """Build the warp that a config names; the last three arguments are the flow warp's."""
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
    """Read each cell where its flow points, bilinear, with zeros beyond the border (eq. 2).

    Args:
        x: features.
        flow: (x, y), in half cells.
        legacy: sample on the released code's grid.
    """
    height, width = x.shape[-2:]
    shift = flow.float().permute(0, 2, 3, 1)
    if legacy:
        corners = [torch.linspace(-1, 1, side, device=x.device) for side in (width, height)]
        return _sample(x, _make_grid(*corners) + _divide(shift, width, height))
    if is_exporting():
        # A canvas would fix the size of the feature, and gathers need none.
        columns, rows = (torch.arange(side, device=x.device) for side in (width, height))
        at_x, at_y = columns + shift[..., 0] / 2, rows[:, None] + shift[..., 1] / 2
        return gather_cells(x.float(), at_x, at_y).to(x.dtype)
    # In a canvas with sides of a power of two, cell centers are floats without rounding error. The
    # zeros to the right and below are the ones that sampling beyond the border gives anyway.
    wide, high = _round_to_power_of_two(width), _round_to_power_of_two(height)
    grid = _make_grid(_make_centers(width, wide, x.device), _make_centers(height, high, x.device))
    canvas = F.pad(x, (0, wide - width, 0, high - height))
    return _sample(canvas, grid + _divide(shift, wide, high))


def _build_conv_norm_relu(in_channels: int, channels: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, 1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.GroupNorm(math.gcd(channels, 32), channels), nn.ReLU())


def _sample(x: Tensor, grid: Tensor) -> Tensor:
    # In float32, even under autocast: a position in bfloat16 is off by a tenth of a cell.
    return sample_bilinear(x.float(), grid.expand(len(x), -1, -1, -1)).to(x.dtype)


def _divide(shift: Tensor, width: int, height: int) -> Tensor:
    return torch.stack([shift[..., 0] / width, shift[..., 1] / height], dim=-1)


def _make_grid(x: Tensor, y: Tensor) -> Tensor:
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([columns, rows], dim=-1)


def _make_centers(side: int, canvas_side: int, device: torch.device) -> Tensor:
    cell = torch.arange(side, device=device, dtype=torch.float32)
    return (2 * cell + 1) / canvas_side - 1


def _round_to_power_of_two(side: int) -> int:
    return 1 << (side - 1).bit_length()
