"""The boundary squeeze module, alone, for any model that pools features of RoIs.

It takes the feature of each RoI and a finer feature of the same RoI, squeezes the boundary from the
outside in (contraction) and from the inside out (expansion), and gives back the refined feature and
the three that training supervises. Adding it to a model takes five lines, where `predict` are four
predictors of the model's own, each from (R, 256, 14, 14) to logits (R, 28, 28):

    squeeze = BoundarySqueeze(256)
    squeezed = squeeze(roi_features, fine_features)
    logits = SqueezeLogits(*(p(feature) for p, feature in zip(predict, squeezed, strict=True)))
    targets = targets_from_masks(masks, kernel_size=5, unite_boundary=True)
    loss = sum(squeeze_losses(logits, targets).values())

Inference needs `squeezed.refined` alone.

With M the feature of the RoI (after the four convolutions of a mask head), F' the finer feature, A
the stop of a gradient, and [.,.] concatenation:

    S  = A(M) + downsample(F')
    C' = contraction tower(S),  C = warp(C', flow([C', M]));  E likewise
    B  = C + E + M  (eq. 1)

The paper's text and the released code differ in the rest. `wiring` chooses; where the text is
silent, "paper" does what the code does.

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

    options of their own:
      fusion          sign of M in eq. 1: "plus" is the paper and the released cascades, "minus" the
                      released COCO and Cityscapes models.
      legacy_warp     the released sampling grid, see bsm/deform.py.
      initialization  "released": towers N(0, 0.01), flows as torch makes them. "kaiming": towers
                      Kaiming, flows zero: training starts from features that are not warped.
      unite_boundary  belongs to the targets, see bsm/field.py.

What stays in the model's head: its convolutions before M, and a deconvolution and predictor for
each of the four features (bsm/instance/mask_heads/squeeze.py).

    R rois, C channels, Cf channels of the finer feature, m side of the RoI feature.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bsm.deform import flow_warp


class Squeezed(NamedTuple):
    """Features of R rois, each (R, C, m, m)."""

    refined: Tensor
    """What the mask is predicted from; the only one inference needs."""
    boundary: Tensor
    """What predicts the boundary: F_boundary."""
    contraction: Tensor
    """Squeezed from the outside in, predicts the band outside: F_contraction."""
    expansion: Tensor
    """Squeezed from the inside out, predicts the band inside: F_expansion."""


class SqueezedFeatureGenerator(nn.Module):
    """Make one squeezed feature: a tower, and a warp by the flow that it and M predict (eq. 2)."""

    def __init__(
        self,
        channels: int = 256,
        *,
        bias: bool = False,
        warp: Literal["flow", "none"] = "flow",
        legacy_warp: bool = False,
        initialization: Literal["released", "kaiming"] = "kaiming",
    ) -> None:
        super().__init__()
        self.legacy_warp = legacy_warp
        self.tower = _tower(channels, bias=bias, initialization=initialization)
        self.flow = nn.Conv2d(2 * channels, 2, 3, padding=1, bias=bias) if warp == "flow" else None
        if self.flow is not None and initialization == "kaiming":
            nn.init.zeros_(self.flow.weight)
        if self.flow is not None and self.flow.bias is not None:
            nn.init.zeros_(self.flow.bias)

    def forward(
        self, summed: Float[Tensor, "R C m m"], roi_features: Float[Tensor, "R C m m"]
    ) -> Float[Tensor, "R C m m"]:
        """Squeeze F_sum, guided by the feature of the RoI."""
        tower: Tensor = self.tower(summed)
        if self.flow is None:
            return tower
        flow = self.flow(torch.cat([tower, roi_features], dim=1))
        return flow_warp(tower, flow, legacy=self.legacy_warp)


class BoundarySqueeze(nn.Module):
    """Squeeze the boundary of each RoI from both sides, and refine the RoI's feature with it.

    Args:
        channels: of the RoI feature and of all that comes out.
        fine_channels: of the finer feature; without it the same.
        wiring: the paper's text or the released code, see the top of this file.
        fusion: sign of the RoI feature in eq. 1.
        warp: what fills the generators' slot (Table 1e); "none" is the ablation without fusion.
        legacy_warp: the released code's sampling grid.
        initialization: of the towers and flows.

    Raises:
        ValueError: an option has none of its values; all such options are named.
    """

    def __init__(
        self,
        channels: int = 256,
        *,
        fine_channels: int | None = None,
        wiring: Literal["paper", "released"] = "released",
        fusion: Literal["plus", "minus"] = "plus",
        warp: Literal["flow", "none"] = "flow",
        legacy_warp: bool = False,
        initialization: Literal["released", "kaiming"] = "kaiming",
    ) -> None:
        super().__init__()
        _check_choices(
            wiring=(wiring, ("paper", "released")),
            fusion=(fusion, ("plus", "minus")),
            warp=(warp, ("flow", "none")),
            initialization=(initialization, ("released", "kaiming")),
        )
        released = wiring == "released"
        self.fusion_sign = 1 if fusion == "plus" else -1
        side, padding = (3, 1) if released else (1, 0)
        self.downsample = nn.Conv2d(
            fine_channels or channels, channels, side, stride=2, padding=padding
        )
        self.contraction, self.expansion = (
            SqueezedFeatureGenerator(
                channels,
                bias=not released,
                warp=warp,
                legacy_warp=legacy_warp,
                initialization=initialization,
            )
            for _ in range(2)
        )
        self.boundary_to_mask = nn.Conv2d(channels, channels, 1)
        self.boundary_tower: nn.Module | None = None
        self.mask_fusion: nn.Conv2d | None = None
        if released:
            self.boundary_tower = _tower(channels, bias=False, initialization=initialization)
            self.mask_fusion = nn.Conv2d(channels, channels, 3, padding=1)
        for layer in (self.downsample, self.boundary_to_mask, self.mask_fusion):
            if layer is not None:
                _kaiming(layer)

    def forward(
        self,
        roi_features: Float[Tensor, "R C m m"],
        fine_features: Float[Tensor, "R Cf 2*m 2*m"],
    ) -> Squeezed:
        """Squeeze R rois.

        Args:
            roi_features: M, what the mask would otherwise be predicted from.
            fine_features: F', of the same boxes, with twice as many cells along each side.

        Raises:
            ValueError: fine_features do not have twice the cells of roi_features.
        """
        _check(roi_features, fine_features)
        summed = roi_features.detach() + self.downsample(fine_features).relu()
        contraction = self.contraction(summed, roi_features)
        expansion = self.expansion(summed, roi_features)
        boundary = contraction + expansion + self.fusion_sign * roi_features  # eq. 1
        if self.boundary_tower is not None:
            boundary = self.boundary_tower(boundary)
        refined = self.boundary_to_mask(boundary)
        if self.mask_fusion is None:
            refined = roi_features + refined
        else:
            refined = roi_features + refined.relu() + contraction + expansion
            refined = self.mask_fusion(refined).relu()
        return Squeezed(refined, boundary, contraction, expansion)


def _tower(channels: int, *, bias: bool, initialization: str) -> nn.Sequential:
    first, last = (nn.Conv2d(channels, channels, 3, padding=1, bias=bias) for _ in range(2))
    for layer in (first, last):
        _kaiming(layer)
        if initialization == "released":
            nn.init.normal_(layer.weight, std=0.01)
    return nn.Sequential(first, nn.ReLU(), last)


def _kaiming(layer: nn.Conv2d) -> None:
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _check_choices(**choices: tuple[str, tuple[str, str]]) -> None:
    wrong = [
        f"{name} {value!r} is none of {allowed}"
        for name, (value, allowed) in choices.items()
        if value not in allowed
    ]
    if wrong:
        raise ValueError(f"BoundarySqueeze: {'; '.join(wrong)}.")


def _check(roi_features: Tensor, fine_features: Tensor) -> None:
    (rois, _, *coarse), (fine_rois, _, *fine) = roi_features.shape, fine_features.shape
    if rois != fine_rois or fine != [2 * side for side in coarse]:
        raise ValueError(
            f"BoundarySqueeze: roi_features are {tuple(roi_features.shape)} and fine_features "
            f"{tuple(fine_features.shape)}; fine_features need the same rois with twice as many "
            f"cells along each side. Pool the same boxes at {[2 * side for side in coarse]} cells."
        )
