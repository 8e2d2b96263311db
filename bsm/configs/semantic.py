"""Configs of semantic models.

Defaults are the paper's DeepLabV3+ with the boundary squeeze (sec. 4.2) on the constants of the
same authors' DeepLabV3+; a field that neither of them specifies names the source of its default.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Interval, MinLen

from bsm.configs.rules import (
    Config,
    Fraction,
    KernelSize,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFraction,
    PositiveInt,
)
from bsm.configs.shared import (
    BackboneConfig,
    GuidedFlowConfig,
    SqueezeConfig,
    check_guided_flow,
    check_weights_categories,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossEntropyConfig(Config):
    """The loss of the label map."""

    kind: Literal["plain", "ohem"] = "plain"
    """The mean over all pixels, or over the hard ones (online hard example mining)."""
    ohem_threshold: PositiveFraction = 0.7
    """A pixel is hard if the probability of its class is at most this."""
    ohem_min_kept: PositiveInt = 10_000
    """Smallest number of pixels per forward pass; the hardest ones are taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SemanticTargetConfig(Config):
    """The boundary, contraction and expansion targets of each class."""

    kernel_size: KernelSize = 15
    """Side of the square dilation and erosion kernel in pixels of the crop, odd (sec. 3.2: 15)."""
    unite_boundary: bool = True
    """Unite both bands with the boundary, as the released code does for instances."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SemanticLossWeights(Config):
    """Weights of the losses; the paper simply adds them."""

    segmentation: NonNegativeFloat = 1.0
    """Cross-entropy of the label map, and of PointRend's points."""
    boundary: NonNegativeFloat = 1.0
    """Cross-entropy and Dice of each class's boundary."""
    contraction: NonNegativeFloat = 1.0
    """Dice of the bands outside each class."""
    expansion: NonNegativeFloat = 1.0
    """Dice of the bands inside each class."""
    auxiliary: NonNegativeFloat = 0.0
    """Cross-entropy of a second label map, predicted from the second-to-last stage; 0 builds no
    such head, as in the paper; 0.4 is usual elsewhere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SemanticPointRendConfig(Config):
    """PointRend on label maps (detectron2's constants for Cityscapes)."""

    channels: PositiveInt = 256
    """Width of the point head."""
    num_layers: NonNegativeInt = 3
    """Layers of the point head before its predictor."""
    num_points: PositiveInt = 2048
    """Points per image in the loss."""
    oversample: PositiveInt = 3
    """Candidates per point."""
    importance: Fraction = 0.75
    """Share of the points that are the most uncertain candidates."""
    subdivisions: Annotated[int, Interval(ge=0, le=2)] = 2
    """Number of doublings in inference; two bring the label map from a quarter to full size."""
    subdivision_points: PositiveInt = 8192
    """Cells predicted again after each doubling."""


def _squeeze_with_batch_norm() -> SqueezeConfig:
    """Whole maps have batch statistics, and the decoder does the fusion."""
    return SqueezeConfig(norm="batch", mask_fusion=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class SemanticHeadConfig(Config):
    """The head that predicts the label map, its targets and its losses."""

    kind: Literal["plain", "pointrend", "squeeze"] = "squeeze"
    """DeepLabV3+ itself, with PointRend on top, or with the boundary squeeze inside."""
    aspp_rates: Annotated[tuple[PositiveInt, ...], MinLen(1)] = (6, 12, 18)
    """Dilations of the pyramid's 3 x 3 convolutions at output stride 16; doubled at 8, where cells
    are half as wide. On crops of up to 16 x rate pixels the outer taps see only padding, stay
    untrained, and harm larger images: small crops need small rates."""
    channels: PositiveInt = 256
    """Width of the pyramid, the squeeze and the decoder."""
    low_level_channels: PositiveInt = 48
    """Channels that the decoder takes from the first stage's feature."""
    squeeze: SqueezeConfig = field(default_factory=_squeeze_with_batch_norm)
    """Norm "batch" means here the kind of batch norm that `backbone.norm` selects."""
    pointrend: SemanticPointRendConfig = field(default_factory=SemanticPointRendConfig)
    targets: SemanticTargetConfig = field(default_factory=SemanticTargetConfig)
    cross_entropy: CrossEntropyConfig = field(default_factory=CrossEntropyConfig)
    loss_weights: SemanticLossWeights = field(default_factory=SemanticLossWeights)
    guided_flow: GuidedFlowConfig = field(default_factory=GuidedFlowConfig)
    """See bsm/semantic/guided_flow.py; a cell of the feature is 8 pixels."""

    def find_problems(self) -> Iterator[tuple[str, str]]:
        """Check that there is a flow to guide."""
        return check_guided_flow(self.kind, self.squeeze, self.guided_flow)


def _backbone_with_sync_norm() -> BackboneConfig:
    return BackboneConfig(norm="sync", freeze_at=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeepLabConfig(Config):
    """A whole semantic model."""

    task: ClassVar[Literal["semantic"]] = "semantic"
    """Tells the model classes apart in JSON."""
    num_classes: Annotated[int, Interval(ge=2, le=255)] = 19
    """Classes of the label map, without void. Labels are bytes, and 255 is void."""
    weights: str = ""
    """Initial weights of the whole model: "" is random except for backbone.weights; else a file of
    this package, and backbone.weights is ignored."""
    weights_leave_out: tuple[str, ...] = ()
    """Modules that stay random although `weights` is given, such as decoder.predict; also modules
    of the file that this model does not have."""
    weights_categories: tuple[Annotated[int, Ge(-1)], ...] = ()
    """As in MaskRCNNConfig."""
    backbone: BackboneConfig = field(default_factory=_backbone_with_sync_norm)
    """The head has the same norm; with a frozen backbone it has batch norm."""
    output_stride: Literal[8, 16] = 8
    """Stride of the backbone's last feature in pixels (sec. 4.2: 8)."""
    dilate_first_blocks: bool = False
    """Dilate the first block of a ResNet's stage like its others, by 2 and 4 at stride 8, as the
    same authors' DeepLabV3+ does; timm dilates it like the stage before, by 1 and 2. Their stem of
    three convolutions has the backbone resnet50s or resnet101s."""
    head: SemanticHeadConfig = field(default_factory=SemanticHeadConfig)

    def find_problems(self) -> Iterator[tuple[str, str]]:
        """Check that categories of start weights have a row each."""
        yield from check_weights_categories(self.weights_categories, self.weights, self.num_classes)
