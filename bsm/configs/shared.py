"""Configs of the parts that instance and semantic models share, as frozen values.

Defaults are the paper's for the squeeze; the rest is in bsm/configs/instance.py and
bsm/configs/semantic.py. A config checks its fields when it is made and reports every violation in
one error.
"""

from dataclasses import dataclass
from typing import Literal

from bsm.configs.rules import choices, raise_all


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneConfig:
    """A timm model without its classifier, and what it does to pixels first."""

    name: str = "resnet50"
    """Any timm model that gives features at strides 4, 8, 16 and 32."""
    weights: str = ""
    """Where the trunk starts: "" is random, "timm" is timm's pretrained weights, else a file with
    timm's, torchvision's, detectron2's or Caffe2's names."""
    weights_color_order: Literal["auto", "rgb", "bgr"] = "auto"
    """Channels that the first convolution of a file reads. Pixels here are RGB, so BGR is flipped
    at load. "auto" goes by the names: BGR for Caffe2's trunks and detectron2's whole models."""
    stride_in_1x1: bool = False
    """Whether a ResNet's bottlenecks step with their first 1 x 1 convolution, as in MSRA's R-50 and
    R-101 and the models that detectron2 trained from them; all others step with the 3 x 3."""
    norm: Literal["frozen", "batch", "sync", "group"] = "frozen"
    """What becomes of batch norms. Frozen statistics need pretrained weights; from scratch take
    batch, sync (GPUs) or group. Layer norms, as in ConvNeXt and Swin, are the same under all."""
    norm_eps: float | None = None
    """Added to the variance in batch norms; None is timm's own. 0 for the weights that torchvision
    publishes as maskrcnn_resnet50_fpn COCO_V1."""
    freeze_at: int = 2
    """How much of the trunk stays as it is: 0 nothing, 1 the stem, 2 the first stage too, ..."""
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """Taken off RGB pixels of 0 to 255."""
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    """Divides RGB pixels after the mean is taken off."""

    def __post_init__(self) -> None:
        raise_all("backbone", _trunk_rules(self))


def _trunk_rules(trunk: BackboneConfig) -> list[tuple[bool, str]]:
    return [
        (0 <= trunk.freeze_at <= 5, f"freeze_at must be 0 to 5, got {trunk.freeze_at}"),
        (min(trunk.pixel_std) > 0, f"pixel_std must be positive, got {trunk.pixel_std}"),
        (
            trunk.norm_eps is None or (trunk.norm_eps >= 0 and trunk.norm != "group"),
            f"norm_eps is of batch norms and at least 0, got {trunk.norm_eps} with norm "
            f"{trunk.norm!r}",
        ),
        (
            not trunk.stride_in_1x1 or trunk.weights != "timm",
            "stride_in_1x1 is not how timm's weights were trained",
        ),
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class FpnBackboneConfig(BackboneConfig):
    """A trunk with a feature pyramid on top."""

    fpn_channels: int = 256
    """Channels of each pyramid level."""

    def __post_init__(self) -> None:
        positive = f"fpn_channels must be positive, got {self.fpn_channels}"
        raise_all("backbone", [*_trunk_rules(self), (self.fpn_channels > 0, positive)])


Branch = Literal["boundary", "contraction", "expansion"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SqueezeConfig:
    """The boundary squeeze module; bsm/squeeze.py says what each choice does."""

    variant: Literal["paper", "released", "light"] = "released"
    """The paper's text, the authors' released code, or ours at a fraction of the work."""
    branches: tuple[Branch, ...] = ("boundary", "contraction", "expansion")
    """Which branches there are (Table 1a); boundary is a supervision, the others are towers too."""
    fine_features: bool = True
    """Add the finer feature of P2 to what the towers see (Table 1c)."""
    mask_feature: bool = True
    """Add the RoI feature to the squeezed ones in eq. 1 (Table 1d)."""
    fusion: Literal["plus", "minus"] = "plus"
    """Sign of the RoI feature in eq. 1: the paper adds, most of the released code subtracts."""
    boundary_to_mask: bool = True
    """Pass the boundary feature through a 1 x 1 convolution to the mask (Table 1d)."""
    mask_fusion: bool = True
    """The 3 x 3 convolution that ends the released variant."""
    warp: Literal["flow", "dcnv2", "dgmn", "none"] = "flow"
    """What fills the generator's slot (Table 1e)."""
    legacy_warp: bool = False
    """The released code's sampling grid, under which zero flow is not the identity."""
    initialization: Literal["released", "kaiming"] = "kaiming"
    """The released N(0, 0.01) towers, or Kaiming towers and a zero flow."""
    norm: Literal["none", "batch", "group"] = "none"
    """After each convolution but the flow's; nothing in the paper's heads for RoIs."""
    light_channels: int = 64
    """Width at which the light variant squeezes."""

    def __post_init__(self) -> None:
        light = self.variant == "light"
        plain = SqueezeConfig.__dataclass_fields__
        fixed = ("branches", "fine_features", "mask_feature", "boundary_to_mask")
        switched = [name for name in fixed if getattr(self, name) != plain[name].default]
        raise_all(
            "squeeze",
            [
                *choices(
                    variant=(self.variant, ("paper", "released", "light")),
                    fusion=(self.fusion, ("plus", "minus")),
                    warp=(self.warp, ("flow", "dcnv2", "dgmn", "none")),
                    initialization=(self.initialization, ("released", "kaiming")),
                    norm=(self.norm, ("none", "batch", "group")),
                    **{
                        f"branches[{place}]": (name, ("boundary", "contraction", "expansion"))
                        for place, name in enumerate(self.branches)
                    },
                ),
                (
                    len(set(self.branches)) == len(self.branches) > 0,
                    f"branches needs at least one name and none twice, got {self.branches}; "
                    'a head without any is kind "plain"',
                ),
                (
                    self.light_channels > 0,
                    f"light_channels must be positive, got {self.light_channels}",
                ),
                (
                    not (light and switched),
                    f"the light variant has no switch {', '.join(switched)}; "
                    'take variant "released" or "paper" for that ablation',
                ),
                (
                    not (light and self.warp in {"dcnv2", "dgmn"}),
                    f'the light variant warps by flow or not at all, got warp "{self.warp}"',
                ),
            ],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class GuidedFlowConfig:
    """Supervision of the two flows by the way to the outline (ours, bsm/guided_flow.py)."""

    weight: float = 0.0
    """Of the loss of either flow; 0 leaves the flows to the other losses, as the paper does."""
    reach: float = 2.0
    """How far from the outline a flow is supervised, in cells of the RoI's feature."""

    def __post_init__(self) -> None:
        raise_all(
            "guided_flow",
            [
                (self.weight >= 0, f"weight may not be negative, got {self.weight}"),
                (self.reach > 0, f"reach must be positive, got {self.reach}"),
            ],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetConfig:
    """How the mask, contraction, expansion and boundary targets of a RoI are made."""

    source: Literal["field", "roi"] = "field"
    """Sampled from the precomputed squeeze field, or morphology on each RoI's own mask."""
    kernel_size: int = 5
    """Side of the square dilation and erosion kernel, in RoI cells; odd (sec. 4.2: 5)."""
    unite_boundary: bool = True
    """Unite contraction and expansion targets with the boundary, as the released code does."""

    def __post_init__(self) -> None:
        raise_all(
            "targets",
            [
                (
                    self.kernel_size >= 3 and self.kernel_size % 2 == 1,
                    f"kernel_size must be odd and at least 3, got {self.kernel_size}",
                )
            ],
        )


BandLoss = Literal["bce", "weighted_bce", "dice", "bce_dice", "weighted_bce_dice"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LossWeights:
    """Weights of the four mask losses; the paper adds them plainly."""

    mask: float = 1.0
    """Binary cross-entropy of the mask."""
    boundary: float = 1.0
    """Cross-entropy and Dice of the boundary."""
    contraction: float = 1.0
    """The contraction band."""
    expansion: float = 1.0
    """The expansion band."""

    def __post_init__(self) -> None:
        values = (self.mask, self.boundary, self.contraction, self.expansion)
        raise_all("loss_weights", [(min(values) >= 0, f"no weight may be negative, got {values}")])
