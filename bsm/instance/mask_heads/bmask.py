"""BMask R-CNN's mask head (Cheng et al. 2020): mask and boundary branches that feed each other.

R RoIs, C channels, K categories, m side of the pooled RoI, M = 2 m side of a mask
"""

from collections.abc import Sequence

from jaxtyping import Float, Int64
from torch import Tensor, nn

from bsm.configs.instance import MaskRCNNConfig
from bsm.instance.convolutions import build_conv_relu
from bsm.instance.mask_heads.fine_stages import FineStages
from bsm.instance.mask_heads.layers import (
    MaskPredictor,
    build_conv_tower,
)
from bsm.instance.roi import pool_finest, pool_rois
from bsm.instance.roi_targets import MaskRois, make_grid_targets
from bsm.instance.tensors import Targets
from bsm.losses import SqueezeLogits, squeeze_losses


class BMaskHead(nn.Module):
    """A plain mask head with a boundary branch, which reads a finer feature and refines the mask.

    All layers have a bias and a ReLU, as in its released code. The boundary's predictor runs only
    in training (the released code always runs it and drops the result).
    """

    def __init__(self, config: MaskRCNNConfig) -> None:
        super().__init__()
        self.config, self.box_convention = config.mask_head, config.box_convention
        self.convs, width = build_conv_tower(config)
        self.downsample = build_conv_relu(config.backbone.fpn_channels, width, 3, stride=2)
        self.mask_to_boundary = build_conv_relu(width, width, 1)
        self.boundary_convs = nn.Sequential(
            build_conv_relu(width, width, 3), build_conv_relu(width, width, 3)
        )
        self.boundary_to_mask = build_conv_relu(width, width, 1)
        self.mask_fusion = build_conv_relu(width, width, 3)
        self.mask = MaskPredictor(width, num_classes=config.num_classes)
        self.boundary = MaskPredictor(width, num_classes=config.num_classes)
        self.fine = FineStages(config, in_channels=width)

    def extract_features(
        self, features: Float[Tensor, "R C m m"], fine_features: Float[Tensor, "R C M M"]
    ) -> tuple[Float[Tensor, "R C m m"], Float[Tensor, "R C m m"]]:
        """Compute the features of the mask and of the boundary."""
        mask = self.convs(features)
        boundary = self.downsample(fine_features) + self.mask_to_boundary(mask)
        boundary = self.boundary_convs(boundary)
        return self.mask_fusion(self.boundary_to_mask(boundary) + mask), boundary

    def forward(
        self,
        features: Float[Tensor, "R C m m"],
        fine_features: Float[Tensor, "R C M M"],
        category_index: Int64[Tensor, " R"],
    ) -> SqueezeLogits:
        """Predict the mask and boundary logits of each RoI for its category."""
        mask, boundary = self.extract_features(features, fine_features)
        return SqueezeLogits(
            self.mask(mask, category_index), self.boundary(boundary, category_index), None, None
        )

    def forward_mask(
        self,
        features: Float[Tensor, "R C m m"],
        fine_features: Float[Tensor, "R C M M"],
        category_index: Int64[Tensor, " R"],
    ) -> Float[Tensor, "R M M"]:
        """Predict only the mask logits of each RoI for its category."""
        mask, _ = self.extract_features(features, fine_features)
        logits: Tensor = self.mask(mask, category_index)
        return logits

    def losses(
        self, pyramid: Sequence[Tensor], rois: MaskRois, targets: Targets
    ) -> dict[str, Tensor]:
        """Compute cross-entropy of the mask, cross-entropy and Dice of the boundary.

        And the fine stages' loss, if there are any.
        """
        config, category_index = self.config, rois.category_index
        wanted = make_grid_targets(rois, targets, config=config.targets, side=2 * config.roi_side)
        features, boundary = self.extract_features(*self._pool(pyramid, rois.rois))
        logits = self.mask(features, category_index)
        losses = squeeze_losses(
            SqueezeLogits(logits, self.boundary(boundary, category_index), None, None),
            wanted,
            weights=rois.weights,
            loss_weights=config.loss_weights,
        )
        return losses | self.fine.losses(pyramid, rois, targets, features=features, logits=logits)

    def predict(self, pyramid: Sequence[Tensor], rois: Tensor, category_index: Tensor) -> Tensor:
        """Predict mask logits (R, M, M) of RoIs (R, 5) for their categories (R,)."""
        features, _ = self.extract_features(*self._pool(pyramid, rois))
        logits: Tensor = self.fine(pyramid, rois, features, self.mask(features, category_index))
        return logits

    def _pool(self, pyramid: Sequence[Tensor], rois: Tensor) -> tuple[Tensor, Tensor]:
        side, box_convention = self.config.roi_side, self.box_convention
        return (
            pool_rois(pyramid, rois, side=side, box_convention=box_convention),
            pool_finest(pyramid[0], rois, side=2 * side, box_convention=box_convention),
        )
