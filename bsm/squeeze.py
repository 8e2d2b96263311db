"""The boundary squeeze module, alone, for any model that pools features of RoIs.

It takes the feature of each RoI and a finer feature of the same RoI, squeezes the boundary from the
outside in (contraction) and from the inside out (expansion), and gives back the refined feature and
the three that training supervises. Adding it to a model takes five lines, where `predict` are four
predictors of the model's own, each from (R, 256, 14, 14) to logits (R, 28, 28):

    squeeze = BoundarySqueeze(256)
    squeezed = squeeze(roi_features, fine_features)
    logits = SqueezeLogits(*(p(feature) for p, feature in zip(predict, squeezed[:4], strict=True)))
    targets = targets_from_masks(masks, kernel_size=5, unite_boundary=True)
    loss = sum(squeeze_losses(logits, targets).values())

Inference needs `squeezed.refined` alone.

With M the feature of the RoI (after the four convolutions of a mask head), F' the finer feature, A
the stop of a gradient, and [.,.] concatenation:

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

    only the code says, done in both:
      M is detached in S; no norm anywhere; a ReLU between the two convolutions of a tower and none
      after them.

    ablations (Table 1):
      branches          (a) A tower that is left out leaves every sum. Without either tower the
                        boundary is predicted from S (+ M) directly. Boundary is a supervision:
                        without it B is computed as before, but not given out.
      fine_features     (c) S = A(M).
      mask_feature      (d) B = C + E.
      boundary_to_mask  (d) B itself is added to the mask, without convolution and ReLU.
      warp              (e) What fills the generators' slot, see bsm/deform.py.

    options of their own:
      fusion          sign of M in eq. 1: "plus" is the paper and the released cascades, "minus" the
                      released COCO and Cityscapes models.
      mask_fusion     the last convolution of "released".
      norm            batch or group norm after each convolution but the flow's, for whole maps.
      legacy_warp     the released sampling grid, see bsm/deform.py.
      initialization  "released": towers N(0, 0.01), flows as torch makes them. "kaiming": towers
                      Kaiming, flows zero: training starts from features that are not warped.
      unite_boundary  belongs to the targets, see bsm/field.py.

What stays in the model's head: its convolutions before M, and a deconvolution and predictor for
each of the four features (bsm/instance/mask_heads/squeeze.py).

    R rois, C channels, Cf channels of the finer feature, m, n its sides (equal for RoIs).
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from bsm.configs.shared import SqueezeConfig
from bsm.deform import Deformed, build_slot


class Flows(NamedTuple):
    """Where the warps read, each (R, 2, m, m), (x, y) in half cells of the feature.

    None where the branch or the flow is left out.
    """

    contraction: Tensor | None
    expansion: Tensor | None


class Squeezed(NamedTuple):
    """Features of R rois, each (R, C, m, m); None where the branch is left out."""

    refined: Tensor
    """What the mask is predicted from; the only one inference needs."""
    boundary: Tensor | None
    """What predicts the boundary: F_boundary."""
    contraction: Tensor | None
    """Squeezed from the outside in, predicts the band outside: F_contraction."""
    expansion: Tensor | None
    """Squeezed from the inside out, predicts the band inside: F_expansion."""
    flows: Flows
    """What guided flow supervises."""


class SqueezedFeatureGenerator(nn.Module):
    """Make one squeezed feature: a tower, and what the slot makes of it with M (eq. 2)."""

    def __init__(self, channels: int, *, config: SqueezeConfig) -> None:
        super().__init__()
        self.tower = tower(channels, config=config)
        self.slot: nn.Module | None = None
        if config.warp != "none":
            self.slot = build_slot(
                config.warp,
                channels,
                bias=config.variant != "released",
                zero_flow=config.initialization == "kaiming",
                legacy=config.legacy_warp,
            )

    def forward(
        self, summed: Float[Tensor, "R C m n"], roi_features: Float[Tensor, "R C m n"]
    ) -> Deformed:
        """Squeeze F_sum, guided by the feature of the RoI."""
        feature: Tensor = self.tower(summed)
        if self.slot is None:
            return Deformed(feature, None)
        deformed: Deformed = self.slot(feature, roi_features)
        return deformed


class BoundarySqueeze(nn.Module):
    """Squeeze the boundary of each RoI from both sides, and refine the RoI's feature with it.

    Args:
        channels: of the RoI feature and of all that comes out.
        fine_channels: of the finer feature; without it the same.
        config: variant and ablations; without it the released variant with all branches. The light
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
            self.downsample = conv(
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
            self.boundary_tower = tower(channels, config=config)
        if config.boundary_to_mask:
            self.boundary_to_mask = conv(channels, channels, 1, config=config, relu=released)
        if released and config.mask_fusion:
            self.mask_fusion = conv(channels, channels, 3, config=config)

    def forward(
        self,
        roi_features: Float[Tensor, "R C m n"],
        fine_features: Float[Tensor, "R Cf 2*m 2*n"] | None = None,
    ) -> Squeezed:
        """Squeeze R rois.

        Args:
            roi_features: M, what the mask would otherwise be predicted from.
            fine_features: F', of the same boxes, with twice as many cells along each side; None in
                the ablation without them.

        Raises:
            ValueError: fine_features do not have twice the cells of roi_features, are missing, or
                there are some that the ablation does not take.
        """
        check_features(roi_features, fine_features, wanted=self.downsample is not None)
        summed = roi_features.detach()
        if self.downsample is not None:
            summed = summed + self.downsample(fine_features)
        contraction, expansion = (
            None if generator is None else generator(summed, roi_features)
            for generator in (self.contraction, self.expansion)
        )
        squeezed = [each.feature for each in (contraction, expansion) if each is not None]
        boundary = add(squeezed or [summed])
        if self.mask_sign:
            boundary = boundary + self.mask_sign * roi_features  # eq. 1
        if self.boundary_tower is not None:
            boundary = self.boundary_tower(boundary)
        refined = boundary if self.boundary_to_mask is None else self.boundary_to_mask(boundary)
        refined = roi_features + refined
        if self.is_released:
            refined = add([refined, *squeezed])
        if self.mask_fusion is not None:
            refined = self.mask_fusion(refined)
        return Squeezed(
            refined,
            boundary if self.gives_boundary else None,
            None if contraction is None else contraction.feature,
            None if expansion is None else expansion.feature,
            Flows(
                None if contraction is None else contraction.flow,
                None if expansion is None else expansion.flow,
            ),
        )


def add(features: Sequence[Tensor]) -> Tensor:
    """Sum features from left to right."""
    total = features[0]
    for feature in features[1:]:
        total = total + feature
    return total


def tower(channels: int, *, config: SqueezeConfig) -> nn.Sequential:
    """Two 3 x 3 convolutions with a ReLU between them and none after them."""
    bias = config.variant != "released"
    layers = [
        *conv(channels, channels, 3, config=config, bias=bias),
        *conv(channels, channels, 3, config=config, bias=bias, relu=False),
    ]
    for layer in layers:
        if isinstance(layer, nn.Conv2d) and config.initialization == "released":
            nn.init.normal_(layer.weight, std=0.01)
    return nn.Sequential(*layers)


def conv(
    in_channels: int,
    channels: int,
    side: Literal[1, 3],
    *,
    config: SqueezeConfig,
    stride: int = 1,
    bias: bool = True,
    relu: bool = True,
) -> nn.Sequential:
    """Build a convolution with the config's norm and a ReLU; a norm takes the bias's place."""
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
    return nn.Sequential(*(each for each in layers if each is not None))


def check_features(roi_features: Tensor, fine_features: Tensor | None, *, wanted: bool) -> None:
    """Raise if the two features of a squeeze do not belong together."""
    if fine_features is None or not wanted:
        if wanted:
            raise ValueError(
                "BoundarySqueeze: fine_features are missing. Give them, or build the module with "
                "SqueezeConfig(fine_features=False)."
            )
        if fine_features is not None:
            raise ValueError(
                "BoundarySqueeze: fine_features are given to a module that was built without them. "
                "Leave them out, or build it with SqueezeConfig(fine_features=True)."
            )
        return
    (rois, _, *coarse), (fine_rois, _, *fine) = roi_features.shape, fine_features.shape
    if rois != fine_rois or fine != [2 * side for side in coarse]:
        raise ValueError(
            f"BoundarySqueeze: roi_features are {tuple(roi_features.shape)} and fine_features "
            f"{tuple(fine_features.shape)}; fine_features need the same rois with twice as many "
            f"cells along each side. Pool the same boxes at {[2 * side for side in coarse]} cells."
        )
