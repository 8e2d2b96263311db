"""Configs of instance models.

Defaults are detectron2's constants for Mask R-CNN with FPN and the paper's for the squeeze, so a
default config is the paper's model.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Interval

from bsm.configs.rules import (
    Config,
    Fraction,
    NonNegativeInt,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
)
from bsm.configs.shared import (
    BandLoss,
    FpnBackboneConfig,
    GuidedFlowConfig,
    LossWeights,
    SqueezeConfig,
    TargetConfig,
    check_guided_flow,
    check_weights_categories,
)

HeadNorm = Literal["none", "frozen", "batch", "group"]
BoxConvention = Literal["detectron2", "torchvision"]
"""Rules for turning boxes into cells; MaskRCNNConfig.box_convention lists the differences."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProposalConfig(Config):
    """The region proposal network (constants of detectron2's Base-RCNN-FPN)."""

    anchor_sizes_px: tuple[
        PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat
    ] = (32.0, 64.0, 128.0, 256.0, 512.0)
    """Anchor size of each pyramid level, P2 to P6."""
    aspect_ratios: tuple[PositiveFloat, ...] = (0.5, 1.0, 2.0)
    """Height over width."""
    num_convs: PositiveInt = 1
    """3 x 3 convolutions before the predictors; torchvision's V2 has two."""
    top_k_before_nms_train: PositiveInt = 2000
    """Proposals kept per level before NMS, in training."""
    top_k_before_nms_test: PositiveInt = 1000
    """Proposals kept per level before NMS, in inference."""
    top_k_after_nms: PositiveInt = 1000
    """Proposals kept per image after NMS (detectron2's cascade trains with 2000)."""
    nms_iou: PositiveFraction = 0.7
    """Drop a proposal that overlaps a better one of its level by more."""
    samples_per_image: PositiveInt = 256
    """Anchors per image in the loss."""
    positive_fraction: Fraction = 0.5
    """Largest share of positive anchors among the samples."""
    iou_low: Fraction = 0.3
    """Anchors below this IoU are negative."""
    iou_high: Fraction = 0.7
    """Anchors with at least this IoU are positive."""

    def anchor_shapes(
        self, *, level: int, box_convention: BoxConvention = "detectron2"
    ) -> list[tuple[float, float]]:
        """Return the (width, height) in pixels of a level's anchors, one for each aspect ratio."""
        size = self.anchor_sizes_px[level]
        shapes = [
            (size / math.sqrt(ratio), size * math.sqrt(ratio)) for ratio in self.aspect_ratios
        ]
        if box_convention == "torchvision":
            return [(2.0 * round(w / 2), 2.0 * round(h / 2)) for w, h in shapes]
        return shapes

    def find_problems(self) -> Iterator[tuple[str, str]]:
        """Check the order of the IoU thresholds."""
        if self.iou_low > self.iou_high:
            yield "iou_low", f"must not exceed iou_high {self.iou_high}, got {self.iou_low}"


CASCADE_WEIGHTS = ((10.0, 5.0), (20.0, 10.0), (30.0, 15.0))
"""Weights of the center and size regressions of each cascade stage (detectron2's
CascadeBoxHead)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxHeadConfig(Config):
    """The second stage: RoI sampling and the box head."""

    kind: Literal["single", "cascade"] = "single"
    """One box head, or three that refine each other's boxes (Cascade R-CNN)."""
    roi_side: PositiveInt = 7
    """Side of the pooled RoI in cells."""
    num_convs: NonNegativeInt = 0
    """3 x 3 convolutions before the fully connected layers; torchvision's V2 has four."""
    num_fcs: Annotated[int, Interval(ge=1, le=2)] = 2
    """Fully connected layers; torchvision's V2 has one."""
    hidden: PositiveInt = 1024
    """Width of the fully connected layers."""
    samples_per_image: PositiveInt = 512
    """RoIs per image in the loss."""
    positive_fraction: PositiveFraction = 0.25
    """Largest share of foreground RoIs among the samples."""
    foreground_iou: PositiveFraction = 0.5
    """Smallest IoU of a foreground RoI with a target box."""
    cascade_ious: tuple[PositiveFraction, PositiveFraction, PositiveFraction] = (0.5, 0.6, 0.7)
    """The foreground IoU of each cascade stage."""
    score_threshold: float = 0.05
    """Drop detections with a lower score."""
    nms_iou: float = 0.5
    """IoU threshold of NMS, applied per category."""
    detections_per_image: PositiveInt = 100
    """Largest number of detections per image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PointRendConfig(Config):
    """PointRend (constants of detectron2's projects/PointRend)."""

    coarse_side: PositiveInt = 7
    """Side of the coarse mask in cells."""
    coarse_hidden: PositiveInt = 1024
    """Width of the two fully connected layers that predict the coarse mask."""
    num_layers: NonNegativeInt = 3
    """Layers of the point head before its predictor."""
    num_points: PositiveInt = 196
    """Points per RoI in the loss."""
    oversample: PositiveInt = 3
    """Candidates per point."""
    importance: Fraction = 0.75
    """Share of the points that are the most uncertain candidates."""
    start_side: PositiveInt = 28
    """Side of the mask that inference predicts densely before subdividing it."""
    subdivisions: NonNegativeInt = 3
    """Number of doublings in inference; three give a side of 224."""
    subdivision_points: PositiveInt = 784
    """Cells predicted again after each doubling."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FineStagesConfig(Config):
    """Finer stages after any head but PointRend's (bsm/instance/mask_heads/fine_stages.py)."""

    channels: tuple[PositiveInt, ...] = ()
    """Width of each stage: the first has the side of the head's mask, each further one twice the
    side of the one before. () adds none; (48, 24) adds stages at 28 and 56."""
    large_channels: NonNegativeInt = 0
    """Width of one more stage at twice the side, for large objects only; 0 leaves it out."""
    large_per_image: PositiveInt = 16
    """Largest number of objects per image in that stage."""
    large_side_px: PositiveFloat = 96.0
    """Smallest square root of the area of such an object's box, in pixels of the input."""
    loss_side: PositiveInt = 112
    """Side to which the finest logits are upsampled for their loss; not less than their own."""
    boundary_band: NonNegativeInt = 0
    """Train the finer stages only near the outline, and replace only cells near it: within this
    number of cells of the coarser grid (RefineMask: 2). 0 trains and takes all cells."""

    def find_problems(self) -> Iterator[tuple[str, str]]:
        """Check that the stage for large objects has stages before it."""
        if self.large_channels and not self.channels:
            yield "large_channels", "needs channels, the stages before it"


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskHeadConfig(Config):
    """The mask head, its targets and its losses."""

    kind: Literal["plain", "bmask", "pointrend", "squeeze"] = "squeeze"
    """Mask R-CNN's own head, BMask R-CNN, PointRend, or the boundary squeeze."""
    train_on: Literal["method", "proposals", "predicted"] = "method"
    """Boxes that masks are trained in: proposals, boxes predicted from them, or the choice of the
    method's authors: predicted boxes for BMask R-CNN and PointRend without a cascade, else
    proposals."""
    roi_side: PositiveInt = 14
    """Side of the pooled RoI in cells; masks are twice as large."""
    channels: PositiveInt = 256
    """Width of every layer."""
    num_convs: NonNegativeInt = 4
    """3 x 3 convolutions before the squeeze or the predictor."""
    squeeze: SqueezeConfig = field(default_factory=SqueezeConfig)
    pointrend: PointRendConfig = field(default_factory=PointRendConfig)
    targets: TargetConfig = field(default_factory=TargetConfig)
    loss_weights: LossWeights = field(default_factory=LossWeights)
    band_loss: BandLoss = "dice"
    """Loss of the contraction and expansion bands (Table 1b)."""
    guided_flow: GuidedFlowConfig = field(default_factory=GuidedFlowConfig)
    fine_stages: FineStagesConfig = field(default_factory=FineStagesConfig)

    def find_problems(self) -> Iterator[tuple[str, str]]:
        """Check that there is a flow to guide, and a dense mask for fine stages to refine."""
        yield from check_guided_flow(self.kind, self.squeeze, self.guided_flow)
        if self.kind == "pointrend" and self.fine_stages.channels:
            yield "fine_stages.channels", 'kind "pointrend" refines its mask itself; leave them out'


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskRCNNConfig(Config):
    """A whole instance model."""

    task: ClassVar[Literal["instance"]] = "instance"
    """Tells the model classes apart in JSON."""
    num_classes: PositiveInt = 80
    """Categories of the box and mask heads, without background."""
    trains: Literal["all", "masks"] = "all"
    """Train everything, or the masks alone in the target boxes, to compare mask heads."""
    weights: str = ""
    """Initial weights of the whole model: "" is random except for backbone.weights; else a file of
    this package, torchvision or detectron2, and backbone.weights is ignored."""
    weights_leave_out: tuple[str, ...] = ()
    """Modules that stay random although `weights` is given, such as box_head.scores; also modules
    of the file that this model does not have."""
    weights_categories: tuple[Annotated[int, Ge(-1)], ...] = ()
    """For each category of this model the index of the category in `weights` that it continues; -1
    starts at random. () takes the file's categories as they are. jobs/finetune.py matches names."""
    box_convention: BoxConvention = "detectron2"
    """Rules for turning boxes into cells; take those the weights were trained with. torchvision:
    RoIAlign without the half-cell shift and with 2 x 2 samples per cell, its rounding between
    pyramid levels, anchors of whole pixels, spaced by image size over grid size, in the padding
    too, and no box thinner than 0.001 px (proposals) or 0.01 px (detections). Training targets and
    losses stay detectron2's."""
    head_norm: HeadNorm = "none"
    """Norm after each convolution of the pyramid, the box head and the mask head's tower, as in
    torchvision's V2. Frozen statistics need weights that were trained with "batch"; the statistics
    of "batch" are those of each worker's own RoIs."""
    backbone: FpnBackboneConfig = field(default_factory=FpnBackboneConfig)
    proposals: ProposalConfig = field(default_factory=ProposalConfig)
    box_head: BoxHeadConfig = field(default_factory=BoxHeadConfig)
    mask_head: MaskHeadConfig = field(default_factory=MaskHeadConfig)

    def find_problems(self) -> Iterator[tuple[str, str]]:
        """Check that only given weights are left out, and that categories have a row each."""
        if self.weights_leave_out and not self.weights:
            yield "weights_leave_out", f"needs weights to leave out {self.weights_leave_out} of"
        yield from check_weights_categories(self.weights_categories, self.weights, self.num_classes)
