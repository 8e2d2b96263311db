"""Configs of the modules that instance and semantic models share.

Defaults are the paper's for the squeeze; bsm/configs/instance.py and bsm/configs/semantic.py hold
the rest.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from bsm.configs.rules import (
    Config,
    KernelSize,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneConfig(Config):
    """A timm model without its classifier, and its pixel normalization."""

    name: str = "resnet50"
    """Any timm model with features at strides 4, 8, 16 and 32; for instance models also a plain
    vision transformer, such as vit_small_patch14_dinov2 or vit_small_patch16_dinov3."""
    weights: str = ""
    """Initial backbone weights: "" is random, "timm" is timm's pretrained weights, else a file with
    timm's, torchvision's, detectron2's or Caffe2's parameter names."""
    weights_color_order: Literal["auto", "rgb", "bgr"] = "auto"
    """Channel order of the file's first convolution. Pixels are RGB here, so BGR is flipped on
    load. "auto" decides by the parameter names: BGR for Caffe2 backbones and detectron2 models."""
    stride_in_1x1: bool = False
    """Put a ResNet bottleneck's stride in its first 1 x 1 convolution, as in MSRA's R-50 and R-101
    and the detectron2 models trained from them; all others have it in the 3 x 3 convolution."""
    norm: Literal["frozen", "batch", "sync", "group"] = "frozen"
    """What replaces batch norms. Frozen statistics need pretrained weights; from scratch take
    batch, sync (GPUs) or group. Layer norms, as in ConvNeXt and Swin, are kept in all cases."""
    norm_eps: NonNegativeFloat | None = None
    """Epsilon of the batch norms; None keeps timm's. 0 for torchvision's maskrcnn_resnet50_fpn
    COCO_V1 weights."""
    freeze_at: Annotated[int, Interval(ge=0, le=5)] = 2
    """Frozen stages: 0 none, 1 the stem, 2 the first stage too, ... 5 all. The stages of a plain
    transformer are quarters of its blocks."""
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """Subtracted from RGB pixels in 0 to 255."""
    pixel_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (58.395, 57.12, 57.375)
    """Divides RGB pixels after the mean is subtracted."""

    def find_problems(self) -> Iterator[tuple[str, str]]:
        """Check that norms and strides fit the weights."""
        if self.norm_eps is not None and self.norm == "group":
            yield "norm_eps", f'needs batch norms, got {self.norm_eps} with norm "group"'
        if self.stride_in_1x1 and self.weights == "timm":
            yield "stride_in_1x1", "timm's weights were trained with the stride in the 3 x 3"


@dataclass(frozen=True, kw_only=True, slots=True)
class FpnBackboneConfig(BackboneConfig):
    """A backbone with a feature pyramid on top."""

    fpn_channels: PositiveInt = 256
    """Channels of each pyramid level."""


Branch = Literal["boundary", "contraction", "expansion"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SqueezeConfig(Config):
    """The boundary squeeze module; bsm/squeeze.py explains each choice."""

    variant: Literal["paper", "released", "light"] = "released"
    """The paper's text, the authors' released code, or our light module."""
    branches: tuple[Branch, ...] = ("boundary", "contraction", "expansion")
    """Supervised branches (Table 1a); contraction and expansion are towers as well."""
    fine_features: bool = True
    """Add the finer P2 feature to the input of the towers (Table 1c)."""
    mask_feature: bool = True
    """Add the RoI feature to the squeezed ones in eq. 1 (Table 1d)."""
    fusion: Literal["plus", "minus"] = "plus"
    """Sign of the RoI feature in eq. 1: the paper adds, most of the released code subtracts."""
    boundary_to_mask: bool = True
    """Pass the boundary feature through a 1 x 1 convolution to the mask (Table 1d)."""
    mask_fusion: bool = True
    """Add the 3 x 3 convolution at the end of the released variant."""
    warp: Literal["flow", "dcnv2", "dgmn", "none"] = "flow"
    """How the generator warps features (Table 1e)."""
    legacy_warp: bool = False
    """Use the released code's sampling grid, where zero flow is not the identity."""
    initialization: Literal["released", "kaiming"] = "kaiming"
    """The released N(0, 0.01) towers, or Kaiming towers and a zero flow."""
    norm: Literal["none", "batch", "group"] = "none"
    """Norm after each convolution except the flow's; the paper's RoI heads have none."""
    light_channels: PositiveInt = 64
    """Width of the light variant."""

    def find_problems(self) -> Iterator[tuple[str, str]]:
        """Check the branches, and that the light variant keeps what it cannot switch."""
        if not self.branches or len(set(self.branches)) < len(self.branches):
            yield (
                "branches",
                f"needs at least one name and no name twice, got {self.branches}; a head without "
                'any is kind "plain"',
            )
        if self.variant != "light":
            return
        defaults = SqueezeConfig.__dataclass_fields__
        fixed = ("branches", "fine_features", "mask_feature", "boundary_to_mask")
        changed = [name for name in fixed if getattr(self, name) != defaults[name].default]
        if changed:
            yield (
                "variant",
                f"the light variant has no switch {', '.join(changed)}; "
                'take variant "released" or "paper" for that ablation',
            )
        if self.warp in {"dcnv2", "dgmn"}:
            yield "warp", f'the light variant warps by "flow" or "none", got "{self.warp}"'


@dataclass(frozen=True, kw_only=True, slots=True)
class GuidedFlowConfig(Config):
    """Supervise both flows with the direction to the outline (ours, bsm/guided_flow.py)."""

    weight: NonNegativeFloat = 0.0
    """Weight of each flow's loss; 0 trains the flows by the other losses alone, as in the paper."""
    reach: PositiveFloat = 2.0
    """Supervised distance from the outline, in cells of the RoI feature."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetConfig(Config):
    """The mask, contraction, expansion and boundary targets of a RoI.

    Recipes of the paper's rows take source "roi", the targets of the released code; our own take
    "field". The two differ at the border of a RoI that cuts an object: there "roi" marks boundary,
    while the field knows the object beyond it.
    """

    source: Literal["field", "roi"] = "field"
    """Sample the precomputed squeeze field, or crop each RoI's mask from whole masks and apply
    morphology to it. PointRend reads its points from the same: about 75 cells across a box in the
    field, every pixel in whole masks."""
    kernel_size: KernelSize = 5
    """Side of the square dilation and erosion kernel in RoI cells, odd (sec. 4.2: 5)."""
    unite_boundary: bool = True
    """Unite contraction and expansion targets with the boundary, as the released code does."""


BandLoss = Literal["bce", "weighted_bce", "dice", "bce_dice", "weighted_bce_dice"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LossWeights(Config):
    """Weights of the four mask losses; the paper simply adds them."""

    mask: NonNegativeFloat = 1.0
    """Binary cross-entropy of the mask."""
    boundary: NonNegativeFloat = 1.0
    """Cross-entropy and Dice of the boundary."""
    contraction: NonNegativeFloat = 1.0
    """Loss of the contraction band."""
    expansion: NonNegativeFloat = 1.0
    """Loss of the expansion band."""


def check_guided_flow(
    kind: str, squeeze: SqueezeConfig, guided_flow: GuidedFlowConfig
) -> Iterator[tuple[str, str]]:
    """Check that a head whose flow is supervised has a flow."""
    if guided_flow.weight > 0 and (kind != "squeeze" or squeeze.warp != "flow"):
        yield (
            "guided_flow.weight",
            f'there is no flow to guide: needs kind "squeeze" and squeeze.warp "flow", got '
            f'"{kind}" and "{squeeze.warp}"',
        )


def check_weights_categories(
    categories: Sequence[int], weights: str, num_classes: int
) -> Iterator[tuple[str, str]]:
    """Check that start weights have an entry for each category of the model."""
    if categories and not weights:
        yield "weights_categories", "needs weights to take categories from"
    if categories and len(categories) != num_classes:
        yield (
            "weights_categories",
            f"needs an entry for each of the {num_classes} categories, got {len(categories)}",
        )
