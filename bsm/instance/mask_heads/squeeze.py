"""The paper's mask head: convolutions, the boundary squeeze, and four predictors.

R RoIs, C channels, K categories, m side of the pooled RoI, M = 2 m side of a mask
"""

from collections.abc import Sequence

from jaxtyping import Float, Int64
from torch import Tensor, nn

from bsm.configs.instance import BoxConvention, MaskHeadConfig
from bsm.guided_flow import flow_targets, guided_flow_losses
from bsm.instance.mask_heads.plain import MaskPredictor, conv_tower, tower_width
from bsm.instance.roi import pool_finest, pool_rois
from bsm.instance.roi_targets import MaskRois, grid_targets
from bsm.instance.tensors import Targets
from bsm.light import LightBoundarySqueeze
from bsm.losses import SqueezeLogits, squeeze_losses
from bsm.squeeze import BoundarySqueeze, Squeezed


class SqueezeMaskHead(nn.Module):
    """The squeeze between the tower of a plain mask head and its predictor (fig. 3a).

    Boundary, contraction and expansion have predictors of their own that only their losses use:
    `masks`, which inference calls, does not run them.
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
        kind = LightBoundarySqueeze if config.squeeze.variant == "light" else BoundarySqueeze
        self.convs = conv_tower(in_channels, config=config)
        self.squeeze = kind(width, fine_channels=in_channels, config=config.squeeze)
        self.mask = MaskPredictor(width, num_classes=num_classes)
        supervised = self.squeeze.supervised_channels
        self.boundary, self.contraction, self.expansion = (
            MaskPredictor(supervised, num_classes=num_classes)
            if name in config.squeeze.branches
            else None
            for name in ("boundary", "contraction", "expansion")
        )
        if config.squeeze.initialization == "released":
            # The released code forgets these two in its list of layers to initialize.
            for predictor in (self.contraction, self.expansion):
                if predictor is not None:
                    predictor.deconv.reset_parameters()

    def squeezed(
        self,
        features: Float[Tensor, "R C m m"],
        fine_features: Float[Tensor, "R C M M"] | None,
    ) -> Squeezed:
        """The features that everything is predicted from."""
        squeezed: Squeezed = self.squeeze(self.convs(features), fine_features)
        return squeezed

    def logits(self, squeezed: Squeezed, category_index: Int64[Tensor, " R"]) -> SqueezeLogits:
        """What the predictors say of squeezed features, each RoI for its category."""
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
        """All predictions of each RoI for its category: what the losses need."""
        return self.logits(self.squeezed(features, fine_features), category_index)

    def masks(
        self,
        features: Float[Tensor, "R C m m"],
        fine_features: Float[Tensor, "R C M M"] | None,
        category_index: Int64[Tensor, " R"],
    ) -> Float[Tensor, "R M M"]:
        """Mask logits of each RoI for its category, and nothing else."""
        logits: Tensor = self.mask(self.squeezed(features, fine_features).refined, category_index)
        return logits

    def losses(
        self, pyramid: Sequence[Tensor], rois: MaskRois, targets: Targets
    ) -> dict[str, Tensor]:
        """Those of `squeeze_losses` and, where the config guides the flows, of guided flow."""
        config = self.config
        wanted = grid_targets(rois, targets, config=config.targets, side=2 * config.roi_side)
        squeezed = self.squeezed(*self._pooled(pyramid, rois.rois))
        losses = squeeze_losses(
            self.logits(squeezed, rois.category_index),
            wanted,
            weights=rois.weights,
            loss_weights=config.loss_weights,
            band=config.band_loss,
        )
        if config.guided_flow.weight:
            losses |= guided_flow_losses(
                squeezed.flows,
                flow_targets(wanted.mask, reach=config.guided_flow.reach),
                config=config.guided_flow,
                weights=rois.weights,
            )
        return losses

    def predict(self, pyramid: Sequence[Tensor], rois: Tensor, category_index: Tensor) -> Tensor:
        """Mask logits (R, M, M) of RoIs (R, 5) for their categories (R,)."""
        return self.masks(*self._pooled(pyramid, rois), category_index)

    def _pooled(self, pyramid: Sequence[Tensor], rois: Tensor) -> tuple[Tensor, Tensor | None]:
        side = self.config.roi_side
        pooled = pool_rois(pyramid, rois, side=side, box_convention=self.box_convention)
        if not self.config.squeeze.fine_features:
            return pooled, None
        return pooled, pool_finest(
            pyramid[0], rois, side=2 * side, box_convention=self.box_convention
        )
