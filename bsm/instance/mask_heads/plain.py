"""Mask R-CNN's own mask head.

R RoIs, C channels, m side of the pooled RoI, M = 2 m side of a mask
"""

from collections.abc import Sequence

from jaxtyping import Float, Int64
from torch import Tensor, nn

from bsm.configs.instance import MaskRCNNConfig
from bsm.instance.mask_heads.fine_stages import FineStages
from bsm.instance.mask_heads.layers import MaskPredictor, build_conv_tower
from bsm.instance.roi import pool_rois
from bsm.instance.roi_targets import MaskRois, make_mask_targets
from bsm.instance.tensors import Targets
from bsm.losses import bce_loss


class PlainMaskHead(nn.Module):
    """A few 3x3 convolutions and a predictor (detectron2's MaskRCNNConvUpsampleHead)."""

    def __init__(self, config: MaskRCNNConfig) -> None:
        super().__init__()
        self.config, self.box_convention = config.mask_head, config.box_convention
        self.convs, width = build_conv_tower(config)
        self.mask = MaskPredictor(width, num_classes=config.num_classes)
        self.fine = FineStages(config, in_channels=width)

    def forward(
        self, features: Float[Tensor, "R C m m"], category_index: Int64[Tensor, " R"]
    ) -> Float[Tensor, "R M M"]:
        """Predict the mask logits of each pooled RoI for its category."""
        logits: Tensor = self.mask(self.convs(features), category_index)
        return logits

    def losses(
        self, pyramid: Sequence[Tensor], rois: MaskRois, targets: Targets
    ) -> dict[str, Tensor]:
        """Compute the cross-entropy of the masks, loss_mask, and the fine stages' loss."""
        config = self.config
        wanted = make_mask_targets(rois, targets, config=config.targets, side=2 * config.roi_side)
        features = self.convs(self._pool(pyramid, rois.rois))
        logits = self.mask(features, rois.category_index)
        loss = bce_loss(logits, wanted, weights=rois.weights)
        return {"loss_mask": loss * config.loss_weights.mask} | self.fine.losses(
            pyramid, rois, targets, features=features, logits=logits
        )

    def predict(self, pyramid: Sequence[Tensor], rois: Tensor, category_index: Tensor) -> Tensor:
        """Predict mask logits (R, M, M) of RoIs (R, 5) for their categories (R,)."""
        features = self.convs(self._pool(pyramid, rois))
        logits: Tensor = self.fine(pyramid, rois, features, self.mask(features, category_index))
        return logits

    def _pool(self, pyramid: Sequence[Tensor], rois: Tensor) -> Tensor:
        side = self.config.roi_side
        return pool_rois(pyramid, rois, side=side, box_convention=self.box_convention)
