"""BMask R-CNN (Cheng et al. 2020): a boundary branch beside the mask, each fed by the other.

R RoIs, C channels, K categories, m side of the pooled RoI, M = 2 m side of a mask
"""

from collections.abc import Sequence

from jaxtyping import Float, Int64
from torch import Tensor, nn

from bsm.configs.instance import BoxConvention, MaskHeadConfig
from bsm.instance.mask_heads.plain import MaskPredictor, conv_relu, conv_tower, tower_width
from bsm.instance.roi import pool_finest, pool_rois
from bsm.instance.roi_targets import MaskRois, grid_targets
from bsm.instance.tensors import Targets
from bsm.losses import SqueezeLogits, squeeze_losses


class BMaskHead(nn.Module):
    """The mask's feature and a finer one make a boundary feature, which then refines the mask.

    All layers have a bias and a ReLU, as its released code has. The boundary's predictor is used in
    training alone (the released code runs it always and drops the result).
    """

    def __init__(
        self,
        in_channels: int,
        *,
        num_classes: int,
        config: MaskHeadConfig,
        box_convention: BoxConvention = "detectron2",
    ) -> None:
        super().__init__()
        self.config, self.box_convention = config, box_convention
        width = tower_width(in_channels, config=config)
        self.convs = conv_tower(in_channels, config=config)
        self.downsample = conv_relu(in_channels, width, 3, stride=2)
        self.mask_to_boundary = conv_relu(width, width, 1)
        self.boundary_convs = nn.Sequential(conv_relu(width, width, 3), conv_relu(width, width, 3))
        self.boundary_to_mask = conv_relu(width, width, 1)
        self.mask_fusion = conv_relu(width, width, 3)
        self.mask = MaskPredictor(width, num_classes=num_classes)
        self.boundary = MaskPredictor(width, num_classes=num_classes)

    def features(
        self, features: Float[Tensor, "R C m m"], fine_features: Float[Tensor, "R C M M"]
    ) -> tuple[Float[Tensor, "R C m m"], Float[Tensor, "R C m m"]]:
        """What the mask and the boundary are predicted from."""
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
        """Mask and boundary of each RoI for its category: what the losses need."""
        mask, boundary = self.features(features, fine_features)
        return SqueezeLogits(
            self.mask(mask, category_index), self.boundary(boundary, category_index), None, None
        )

    def masks(
        self,
        features: Float[Tensor, "R C m m"],
        fine_features: Float[Tensor, "R C M M"],
        category_index: Int64[Tensor, " R"],
    ) -> Float[Tensor, "R M M"]:
        """Mask logits of each RoI for its category, and nothing else."""
        logits: Tensor = self.mask(self.features(features, fine_features)[0], category_index)
        return logits

    def losses(
        self, pyramid: Sequence[Tensor], rois: MaskRois, targets: Targets
    ) -> dict[str, Tensor]:
        """Cross-entropy of the mask, cross-entropy and Dice of the boundary."""
        config = self.config
        wanted = grid_targets(rois, targets, config=config.targets, side=2 * config.roi_side)
        return squeeze_losses(
            self(*self._pooled(pyramid, rois.rois), rois.category_index),
            wanted,
            weights=rois.weights,
            loss_weights=config.loss_weights,
        )

    def predict(self, pyramid: Sequence[Tensor], rois: Tensor, category_index: Tensor) -> Tensor:
        """Mask logits (R, M, M) of RoIs (R, 5) for their categories (R,)."""
        return self.masks(*self._pooled(pyramid, rois), category_index)

    def _pooled(self, pyramid: Sequence[Tensor], rois: Tensor) -> tuple[Tensor, Tensor]:
        side, box_convention = self.config.roi_side, self.box_convention
        return (
            pool_rois(pyramid, rois, side=side, box_convention=box_convention),
            pool_finest(pyramid[0], rois, side=2 * side, box_convention=box_convention),
        )
