"""The paper's mask head: convolutions, the boundary squeeze, and four predictors.

R RoIs, C channels, K categories, m side of the pooled RoI, M = 2 m side of a mask
"""

from jaxtyping import Float, Int64
from torch import Tensor, nn

from bsm.config import MaskHeadConfig
from bsm.instance.mask_heads.plain import MaskPredictor, conv_tower, tower_width
from bsm.losses import SqueezeLogits
from bsm.squeeze import BoundarySqueeze, Squeezed


class SqueezeMaskHead(nn.Module):
    """The squeeze between the tower of a plain mask head and its predictor (fig. 3a).

    Boundary, contraction and expansion have predictors of their own that only their losses use:
    `masks`, which inference calls, does not run them.
    """

    def __init__(self, in_channels: int, *, num_classes: int, config: MaskHeadConfig) -> None:
        super().__init__()
        width = tower_width(in_channels, config=config)
        self.convs = conv_tower(in_channels, config=config)
        self.squeeze = BoundarySqueeze(
            width,
            fine_channels=in_channels,
            wiring=config.squeeze.wiring,
            fusion=config.squeeze.fusion,
            warp=config.squeeze.warp,
            legacy_warp=config.squeeze.legacy_warp,
            initialization=config.squeeze.initialization,
        )
        self.mask = MaskPredictor(width, num_classes=num_classes)
        self.boundary = MaskPredictor(width, num_classes=num_classes)
        self.contraction = MaskPredictor(width, num_classes=num_classes)
        self.expansion = MaskPredictor(width, num_classes=num_classes)
        if config.squeeze.initialization == "released":
            # The released code forgets these two in its list of layers to initialize.
            self.contraction.deconv.reset_parameters()
            self.expansion.deconv.reset_parameters()

    def forward(
        self,
        features: Float[Tensor, "R C m m"],
        fine_features: Float[Tensor, "R C M M"],
        category_index: Int64[Tensor, " R"],
    ) -> SqueezeLogits:
        """All four predictions of each RoI for its category: what the losses need."""
        squeezed: Squeezed = self.squeeze(self.convs(features), fine_features)
        return SqueezeLogits(
            self.mask(squeezed.refined, category_index),
            self.boundary(squeezed.boundary, category_index),
            self.contraction(squeezed.contraction, category_index),
            self.expansion(squeezed.expansion, category_index),
        )

    def masks(
        self,
        features: Float[Tensor, "R C m m"],
        fine_features: Float[Tensor, "R C M M"],
        category_index: Int64[Tensor, " R"],
    ) -> Float[Tensor, "R M M"]:
        """Mask logits of each RoI for its category, and nothing else."""
        squeezed: Squeezed = self.squeeze(self.convs(features), fine_features)
        logits: Tensor = self.mask(squeezed.refined, category_index)
        return logits
