"""A light boundary squeeze: the whole module at a quarter of the width.

The paper calls its module light, but the released head costs 1.47 GMAC per RoI where a plain mask
head costs 0.53. Most of that is 3 x 3 convolutions at full width, for three thin outlines. So a
1 x 1 convolution narrows M, everything up to the mask happens in the narrow feature, and a 1 x 1
convolution widens the result:

    N  = narrow(M)
    S  = A(N) + downsample(F')                           3 x 3, stride 2, ReLU, as released
    C', E' = towers(S)                                   one convolution, then one in two groups
    C  = warp(C', flow_c),  E = warp(E', flow_e)         both flows from [C', E', N]
    B  = tower(C + E + N)  (eq. 1)                       one 3 x 3 convolution
    M' = ReLU(M + widen([B, C, E]))                      1 x 1

R rois, C channels, Cf channels of the finer feature, w width of the squeeze, m, n sides
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bsm.configs.shared import SqueezeConfig
from bsm.deform import flow_warp
from bsm.squeeze import Flows, SqueezedFeatures, build_conv, check_features


class LightBoundarySqueeze(nn.Module):
    """A drop-in for `BoundarySqueeze` whose supervised features have only w channels.

    Args:
        channels: of the RoI feature and of the refined one.
        fine_channels: of the finer feature; by default the same.
        config: its variant must be "light".
    """

    def __init__(
        self,
        channels: int = 256,
        *,
        fine_channels: int | None = None,
        config: SqueezeConfig | None = None,
    ) -> None:
        super().__init__()
        config = config or SqueezeConfig(variant="light")
        width = config.light_channels
        self.supervised_channels = width
        self.mask_sign = {"plus": 1, "minus": -1}[config.fusion]
        self.legacy_warp = config.legacy_warp
        self.narrow = build_conv(channels, width, 1, config=config)
        self.downsample = build_conv(fine_channels or channels, width, 3, stride=2, config=config)
        self.towers_in = build_conv(width, 2 * width, 3, config=config)
        self.towers_out = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2, bias=False)
        self.flows: nn.Conv2d | None = None
        if config.warp != "none":
            self.flows = nn.Conv2d(3 * width, 4, 3, padding=1)
        self.boundary_tower = build_conv(width, width, 3, config=config, relu=False)
        self.widen = build_conv(3 * width, channels, 1, config=config, relu=False)
        self._initialize(config)

    def _initialize(self, config: SqueezeConfig) -> None:
        for layer in (*self.towers_in, self.towers_out, *self.boundary_tower):
            if not isinstance(layer, nn.Conv2d):
                continue
            if config.initialization == "released":
                nn.init.normal_(layer.weight, std=0.01)
            else:
                # fan_in, because the towers' second convolution reads one group of channels.
                nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
        if self.flows is not None and config.initialization == "kaiming":
            nn.init.zeros_(self.flows.weight)
        if self.flows is not None and self.flows.bias is not None:
            nn.init.zeros_(self.flows.bias)

    def forward(
        self,
        roi_features: Float[Tensor, "R C m n"],
        fine_features: Float[Tensor, "R Cf 2*m 2*n"] | None = None,
    ) -> SqueezedFeatures:
        """Squeeze R rois.

        Args:
            roi_features: M, from which the mask would be predicted without the squeeze.
            fine_features: F', of the same boxes, with twice as many cells along each side.

        Raises:
            ValueError: fine_features are missing, or do not have twice the cells of roi_features.
        """
        check_features(roi_features, fine_features, wanted=True)
        narrow = self.narrow(roi_features)
        summed = narrow.detach() + self.downsample(fine_features)
        towers = self.towers_out(self.towers_in(summed))
        contraction, expansion = towers.chunk(2, dim=1)
        flows = Flows(None, None)
        if self.flows is not None:
            both = self.flows(torch.cat([towers, narrow], dim=1))
            flows = Flows(*both.chunk(2, dim=1))
            contraction = flow_warp(contraction, both[:, :2], legacy=self.legacy_warp)
            expansion = flow_warp(expansion, both[:, 2:], legacy=self.legacy_warp)
        boundary = self.boundary_tower(contraction + expansion + self.mask_sign * narrow)
        widened = self.widen(torch.cat([boundary, contraction, expansion], dim=1))
        refined = (roi_features + widened).relu()
        return SqueezedFeatures(refined, boundary, contraction, expansion, flows)
