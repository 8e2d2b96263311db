"""The boundary squeeze module, on its own, for any model that pools features of RoIs.

It takes the feature of each RoI and a finer feature of the same RoI, squeezes the boundary from the
outside in (contraction) and from the inside out (expansion), and returns the refined feature and
the three that training supervises. Adding it to a model takes five lines, where `predict` are four
predictors of the model's own, each from (R, 256, 14, 14) to logits (R, 28, 28):

    squeeze = BoundarySqueeze(256)
    squeezed = squeeze(roi_features, fine_features)
    logits = SqueezeLogits(*(p(feature) for p, feature in zip(predict, squeezed[:4], strict=True)))
    targets = targets_from_masks(masks, kernel_size=5, unite_boundary=True)
    loss = sum(squeeze_losses(logits, targets).values())

Inference needs `squeezed.refined` alone.

M is the RoI feature, F' the finer feature, A stops the gradient, and [.,.] concatenates:

    S  = A(M) + downsample(F')
    C' = contraction tower(S),  C = warp(C', flow([C', M]));  E likewise
    B  = C + E + M  (eq. 1)

The paper's text and the released code differ in the rest. `variant` chooses; where the text is
silent, "paper" does what the code does. The third variant, "light", is in bsm/light.py.

    difference               "paper"                  "released"
    downsample               1 x 1, stride 2, ReLU    3 x 3, stride 2, ReLU
    bias in towers, flows    yes, as layers have      no
    after eq. 1              nothing                  a tower of two 3 x 3 convolutions
    boundary to mask         M' = M + conv1x1(B)      M' = M + ReLU(conv1x1(B)) + C + E
    refined feature          M'                       ReLU(conv3x3(M'))
    parameters (256 ch.)     2.51 M                   4.80 M

    only in the code, done in both:
      M is detached in S; no norm anywhere; a tower has one ReLU, between its two convolutions.

    ablations (Table 1):
      branches          (a) A tower that is left out leaves every sum. Without either tower the
                        boundary is predicted from S (+ M) directly. The boundary branch is
                        supervision only: without it B is still computed, but not returned.
      fine_features     (c) S = A(M).
      mask_feature      (d) B = C + E.
      boundary_to_mask  (d) B itself is added to the mask, without convolution and ReLU.
      warp              (e) The warp of the generators, see bsm/deform.py.

    options of ours:
      fusion          sign of M in eq. 1: "plus" is the paper and the released cascades, "minus" the
                      released COCO and Cityscapes models.
      mask_fusion     the last convolution of "released".
      norm            batch or group norm after each convolution but the flow's, for whole maps.
      legacy_warp     the released sampling grid, see bsm/deform.py.
      initialization  "released": towers N(0, 0.01), flows as torch makes them. "kaiming": towers
                      Kaiming, flows zero: training starts from features that are not warped.
      unite_boundary  belongs to the targets, see bsm/field.py.

The model's head keeps its convolutions before M, and a deconvolution and predictor for each of the
four features (bsm/instance/mask_heads/squeeze.py).

R rois, C channels, Cf channels of the finer feature, m, n its sides (equal for RoIs)
"""

import math
from typing import Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from bsm.configs.shared import SqueezeConfig
from bsm.deform import WarpOutput, build_warp


class Flows(NamedTuple):
    """The flows of the two warps, each (R, 2, m, m), (x, y) in half cells of the feature.

    None where the branch or the flow is left out.
    """

    contraction: Tensor | None
    expansion: Tensor | None


class SqueezedFeatures(NamedTuple):
    """Features of R rois, each (R, C, m, m); None where the branch is left out."""

    refined: Tensor
    """Predicts the mask; inference needs no other."""
    boundary: Tensor | None
    """Predicts the boundary: F_boundary."""
    contraction: Tensor | None
    """Squeezed from the outside in; predicts the band outside: F_contraction."""
    expansion: Tensor | None
    """Squeezed from the inside out; predicts the band inside: F_expansion."""
    flows: Flows
    """Supervised by guided flow."""


class SqueezedFeatureGenerator(nn.Module):
    """Make one squeezed feature: a tower, then a warp guided by M (eq. 2)."""

    def __init__(self, channels: int, *, config: SqueezeConfig) -> None:
        super().__init__()
        self.tower = build_tower(channels, config=config)
        # The warp, named "slot" in checkpoints.
        self.slot: nn.Module | None = None
        if config.warp != "none":
            self.slot = build_warp(
                config.warp,
                channels,
                bias=config.variant != "released",
                zero_flow=config.initialization == "kaiming",
                legacy=config.legacy_warp,
            )

    def forward(
        self, summed: Float[Tensor, "R C m n"], roi_features: Float[Tensor, "R C m n"]
    ) -> WarpOutput:
        """Squeeze F_sum, guided by the RoI feature."""
        feature: Tensor = self.tower(summed)
        if self.slot is None:
            return WarpOutput(feature, None)
        warped: WarpOutput = self.slot(feature, roi_features)
        return warped


class BoundarySqueeze(nn.Module):
    """Squeeze the boundary of each RoI from both sides, and refine the RoI's feature with it.

    Args:
        channels: of the RoI feature and of every output.
        fine_channels: of the finer feature; by default the same.
        config: variant and ablations; by default the released variant with all branches. The light
            variant is another class, `bsm.light.LightBoundarySqueeze`.

    Raises:
        ValueError: the config asks for the light variant.
    """

    def __init__(
        self,
        channels: int = 256,
        *,
        fine_channels: int | None = None,
        config: SqueezeConfig | None = None,
    ) -> None:
        super().__init__()
        config = config or SqueezeConfig()
        if config.variant == "light":
            raise ValueError(
                'BoundarySqueeze: variant "light" is another class. Take LightBoundarySqueeze of '
                "bsm.light."
            )
        released = config.variant == "released"
        self.supervised_channels = channels
        self.gives_boundary = "boundary" in config.branches
        self.mask_sign = {"plus": 1, "minus": -1}[config.fusion] if config.mask_feature else 0
        self.is_released = released
        self.downsample: nn.Module | None = None
        if config.fine_features:
            self.downsample = build_conv(
                fine_channels or channels, channels, 3 if released else 1, stride=2, config=config
            )
        self.contraction, self.expansion = (
            SqueezedFeatureGenerator(channels, config=config) if name in config.branches else None
            for name in ("contraction", "expansion")
        )
        self.boundary_tower: nn.Module | None = None
        self.boundary_to_mask: nn.Module | None = None
        self.mask_fusion: nn.Module | None = None
        if released:
            self.boundary_tower = build_tower(channels, config=config)
        if config.boundary_to_mask:
            self.boundary_to_mask = build_conv(channels, channels, 1, config=config, relu=released)
        if released and config.mask_fusion:
            self.mask_fusion = build_conv(channels, channels, 3, config=config)

    def forward(
        self,
        roi_features: Float[Tensor, "R C m n"],
        fine_features: Float[Tensor, "R Cf 2*m 2*n"] | None = None,
    ) -> SqueezedFeatures:
        """Squeeze R rois.

        Args:
            roi_features: M, from which the mask would be predicted without the squeeze.
            fine_features: F', of the same boxes, with twice as many cells along each side; None in
                the ablation without them.

        Raises:
            ValueError: fine_features do not have twice the cells of roi_features, are missing, or
                are given in the ablation without them.
        """
        check_features(roi_features, fine_features, wanted=self.downsample is not None)
        summed = roi_features.detach()
        if self.downsample is not None:
            summed = summed + self.downsample(fine_features)
        contraction, expansion = (
            None if generator is None else generator(summed, roi_features)
            for generator in (self.contraction, self.expansion)
        )
        squeezed = [branch.feature for branch in (contraction, expansion) if branch is not None]
        boundary = sum(squeezed[1:], squeezed[0]) if squeezed else summed
        if self.mask_sign:
            boundary = boundary + self.mask_sign * roi_features  # eq. 1
        if self.boundary_tower is not None:
            boundary = self.boundary_tower(boundary)
        refined = boundary if self.boundary_to_mask is None else self.boundary_to_mask(boundary)
        refined = roi_features + refined
        if self.is_released:
            refined = sum(squeezed, refined)
        if self.mask_fusion is not None:
            refined = self.mask_fusion(refined)
        return SqueezedFeatures(
            refined,
            boundary if self.gives_boundary else None,
            None if contraction is None else contraction.feature,
            None if expansion is None else expansion.feature,
            Flows(
                None if contraction is None else contraction.flow,
                None if expansion is None else expansion.flow,
            ),
        )


def build_tower(channels: int, *, config: SqueezeConfig) -> nn.Sequential:
    """Build two 3 x 3 convolutions with a ReLU between them and none after them."""
    bias = config.variant != "released"
    layers = [
        *build_conv(channels, channels, 3, config=config, bias=bias),
        *build_conv(channels, channels, 3, config=config, bias=bias, relu=False),
    ]
    for layer in layers:
        if isinstance(layer, nn.Conv2d) and config.initialization == "released":
            nn.init.normal_(layer.weight, std=0.01)
    return nn.Sequential(*layers)


def build_conv(
    in_channels: int,
    channels: int,
    side: Literal[1, 3],
    *,
    config: SqueezeConfig,
    stride: int = 1,
    bias: bool = True,
    relu: bool = True,
) -> nn.Sequential:
    """Build a convolution with the config's norm and a ReLU; a norm replaces the bias."""
    norm: nn.Module | None = None
    match config.norm:
        case "batch":
            norm = nn.BatchNorm2d(channels)
        case "group":
            norm = nn.GroupNorm(math.gcd(channels, 32), channels)
    layer = nn.Conv2d(
        in_channels,
        channels,
        side,
        stride=stride,
        padding=side // 2,
        bias=bias and norm is None,
    )
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    layers = [layer, norm, nn.ReLU() if relu else None]
    return nn.Sequential(*(part for part in layers if part is not None))


def check_features(roi_features: Tensor, fine_features: Tensor | None, *, wanted: bool) -> None:
    """Raise if the two features of a squeeze do not fit together."""
    if wanted and fine_features is None:
        raise ValueError(
            "BoundarySqueeze: fine_features are missing. Give them, or build the module with "
            "SqueezeConfig(fine_features=False)."
        )
    if fine_features is None:
        return
    if not wanted:
        raise ValueError(
            "BoundarySqueeze: fine_features are given to a module that was built without them. "
            "Leave them out, or build it with SqueezeConfig(fine_features=True)."
        )
    (rois, _, *coarse), (fine_rois, _, *fine) = roi_features.shape, fine_features.shape
    if rois != fine_rois or fine != [2 * side for side in coarse]:
        raise ValueError(
            f"BoundarySqueeze: roi_features are {tuple(roi_features.shape)} and fine_features "
            f"{tuple(fine_features.shape)}; fine_features need the same rois with twice as many "
            f"cells along each side. Pool the same boxes at {[2 * side for side in coarse]} cells."
        )
