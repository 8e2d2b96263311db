"""The paper's mask head: convolutions, the boundary squeeze, and four predictors.

R RoIs, C channels, K categories, m side of the pooled RoI, M = 2 m side of a mask
"""

from collections.abc import Sequence

from jaxtyping import Float, Int64
from torch import Tensor, nn

from bsm.configs.instance import MaskRCNNConfig
from bsm.guided_flow import guided_flow_losses, make_flow_targets
from bsm.instance.mask_heads.fine_stages import FineStages
from bsm.instance.mask_heads.layers import MaskPredictor, build_conv_tower
from bsm.instance.roi import pool_finest, pool_rois
from bsm.instance.roi_targets import MaskRois, make_grid_targets
from bsm.instance.tensors import Targets
from bsm.light import LightBoundarySqueeze
from bsm.losses import SqueezeLogits, squeeze_losses
from bsm.squeeze import BoundarySqueeze, SqueezedFeatures


class SqueezeMaskHead(nn.Module):
    """A plain mask head with the squeeze between its tower and its predictor (fig. 3a).

    The predictors of boundary, contraction and expansion run only in training.
    """

    def __init__(self, config: MaskRCNNConfig) -> None:
        super().__init__()
        self.config, self.box_convention = config.mask_head, config.box_convention
        squeeze, num_classes = config.mask_head.squeeze, config.num_classes
        kind = LightBoundarySqueeze if squeeze.variant == "light" else BoundarySqueeze
        self.convs, width = build_conv_tower(config)
        self.squeeze = kind(width, fine_channels=config.backbone.fpn_channels, config=squeeze)
        self.mask = MaskPredictor(width, num_classes=num_classes)
        supervised = self.squeeze.supervised_channels
        self.boundary, self.contraction, self.expansion = (
            MaskPredictor(supervised, num_classes=num_classes) if name in squeeze.branches else None
            for name in ("boundary", "contraction", "expansion")
        )
        self.fine = FineStages(config, in_channels=width)
        if squeeze.initialization == "released":
            # The released code leaves these two out of its list of layers to initialize.
            for predictor in (self.contraction, self.expansion):
                if predictor is not None:
                    predictor.deconv.reset_parameters()

    def squeeze_features(
        self,
        features: Float[Tensor, "R C m m"],
        fine_features: Float[Tensor, "R C M M"] | None,
    ) -> SqueezedFeatures:
        """Compute the features of all predictors."""
        squeezed: SqueezedFeatures = self.squeeze(self.convs(features), fine_features)
        return squeezed

    def predict_logits(
        self, squeezed: SqueezedFeatures, category_index: Int64[Tensor, " R"]
    ) -> SqueezeLogits:
        """Predict all logits from squeezed features, each RoI for its category."""
        mask: Tensor = self.mask(squeezed.refined, category_index)
        bands = [
            None if predictor is None else predictor(feature, category_index)
            for predictor, feature in (
                (self.boundary, squeezed.boundary),
                (self.contraction, squeezed.contraction),
                (self.expansion, squeezed.expansion),
            )
        ]
        return SqueezeLogits(mask, *bands)

    def forward(
        self,
        features: Float[Tensor, "R C m m"],
        fine_features: Float[Tensor, "R C M M"] | None,
        category_index: Int64[Tensor, " R"],
    ) -> SqueezeLogits:
        """Predict all logits of each RoI for its category."""
        return self.predict_logits(self.squeeze_features(features, fine_features), category_index)

    def forward_mask(
        self,
        features: Float[Tensor, "R C m m"],
        fine_features: Float[Tensor, "R C M M"] | None,
        category_index: Int64[Tensor, " R"],
    ) -> Float[Tensor, "R M M"]:
        """Predict only the mask logits of each RoI for its category."""
        refined = self.squeeze_features(features, fine_features).refined
        logits: Tensor = self.mask(refined, category_index)
        return logits

    def losses(
        self, pyramid: Sequence[Tensor], rois: MaskRois, targets: Targets
    ) -> dict[str, Tensor]:
        """Compute `squeeze_losses`, and the losses of guided flows and fine stages if any."""
        config = self.config
        wanted = make_grid_targets(rois, targets, config=config.targets, side=2 * config.roi_side)
        squeezed = self.squeeze_features(*self._pool(pyramid, rois.rois))
        logits = self.predict_logits(squeezed, rois.category_index)
        losses = squeeze_losses(
            logits,
            wanted,
            weights=rois.weights,
            loss_weights=config.loss_weights,
            band=config.band_loss,
        )
        if config.guided_flow.weight:
            losses |= guided_flow_losses(
                squeezed.flows,
                make_flow_targets(wanted.mask, reach=config.guided_flow.reach),
                config=config.guided_flow,
                weights=rois.weights,
            )
        return losses | self.fine.losses(
            pyramid,
            rois,
            targets,
            features=squeezed.refined,
            logits=logits.mask,  # type: ignore[arg-type]
        )

    def predict(self, pyramid: Sequence[Tensor], rois: Tensor, category_index: Tensor) -> Tensor:
        """Predict mask logits (R, M, M) of RoIs (R, 5) for their categories (R,)."""
        features = self.squeeze_features(*self._pool(pyramid, rois)).refined
        logits: Tensor = self.fine(pyramid, rois, features, self.mask(features, category_index))
        return logits

    def _pool(self, pyramid: Sequence[Tensor], rois: Tensor) -> tuple[Tensor, Tensor | None]:
        side = self.config.roi_side
        pooled = pool_rois(pyramid, rois, side=side, box_convention=self.box_convention)
        if not self.config.squeeze.fine_features:
            return pooled, None
        return pooled, pool_finest(
            pyramid[0], rois, side=2 * side, box_convention=self.box_convention
        )
