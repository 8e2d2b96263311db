"""What an instance model is made of, as frozen values.

Defaults are detectron2's constants for Mask R-CNN with FPN and the paper's for the squeeze, so an
empty config is the paper's model.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from bsm.configs.rules import choices, raise_all
from bsm.configs.shared import (
    BandLoss,
    FpnBackboneConfig,
    GuidedFlowConfig,
    LossWeights,
    SqueezeConfig,
    TargetConfig,
)

BoxConvention = Literal["detectron2", "torchvision"]
"""Whose rules turn boxes into cells; MaskRCNNConfig.box_convention lists the differences."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProposalConfig:
    """The region proposal network (facts of detectron2's Base-RCNN-FPN)."""

    anchor_sizes_px: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
    """One anchor size for each pyramid level P2 to P6."""
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height over width."""
    top_k_before_nms_train: int = 2000
    """Proposals kept on each level before NMS, in training."""
    top_k_before_nms_test: int = 1000
    """The same in inference."""
    top_k_after_nms: int = 1000
    """Proposals kept in each image after NMS (detectron2's cascade trains with 2000)."""
    nms_iou: float = 0.7
    """A proposal that overlaps a better one of its level by more is dropped."""
    samples_per_image: int = 256
    """Anchors that carry loss."""
    positive_fraction: float = 0.5
    """At most this share of the samples is positive."""
    iou_low: float = 0.3
    """Anchors below are negative."""
    iou_high: float = 0.7
    """Anchors from here on are positive."""

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

    def __post_init__(self) -> None:
        raise_all(
            "proposals",
            [
                (
                    len(self.anchor_sizes_px) == 5,
                    f"anchor_sizes_px needs 5 values (P2 to P6), got {self.anchor_sizes_px}",
                ),
                (
                    0 <= self.iou_low <= self.iou_high <= 1,
                    f"need 0 <= iou_low <= iou_high <= 1, got {self.iou_low} and {self.iou_high}",
                ),
                (0 < self.nms_iou <= 1, f"nms_iou must be in (0, 1], got {self.nms_iou}"),
                (
                    min(
                        self.top_k_before_nms_train,
                        self.top_k_before_nms_test,
                        self.top_k_after_nms,
                        self.samples_per_image,
                    )
                    > 0,
                    "every count must be positive",
                ),
            ],
        )


CASCADE_WEIGHTS = ((10.0, 5.0), (20.0, 10.0), (30.0, 15.0))
"""Weights of the center and size regressions of each cascade stage (detectron2's
CascadeBoxHead)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxHeadConfig:
    """The second stage: which RoIs are trained, and the two-layer box head."""

    kind: Literal["single", "cascade"] = "single"
    """One box head, or three, each of which refines the boxes of the one before (Cascade R-CNN)."""
    roi_side: int = 7
    """Cells along a side of the pooled RoI."""
    hidden: int = 1024
    """Width of the two fully connected layers."""
    samples_per_image: int = 512
    """RoIs that carry loss in each image."""
    positive_fraction: float = 0.25
    """At most this share is foreground."""
    foreground_iou: float = 0.5
    """A proposal is foreground from this overlap with a target box on."""
    cascade_ious: tuple[float, ...] = (0.5, 0.6, 0.7)
    """The same for each stage of a cascade; there are as many stages as values."""
    score_threshold: float = 0.05
    """Detections below are dropped."""
    nms_iou: float = 0.5
    """For each category."""
    detections_per_image: int = 100
    """At most so many detections leave an image."""

    def __post_init__(self) -> None:
        raise_all(
            "box_head",
            [
                (
                    0 < self.positive_fraction <= 1,
                    f"positive_fraction must be in (0, 1], got {self.positive_fraction}",
                ),
                (
                    0 < self.foreground_iou <= 1,
                    f"foreground_iou must be in (0, 1], got {self.foreground_iou}",
                ),
                (
                    len(self.cascade_ious) == 3 and all(0 < iou <= 1 for iou in self.cascade_ious),
                    f"cascade_ious needs 3 values in (0, 1], got {self.cascade_ious}",
                ),
                (
                    min(
                        self.roi_side,
                        self.hidden,
                        self.samples_per_image,
                        self.detections_per_image,
                    )
                    > 0,
                    "every count must be positive",
                ),
            ],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PointRendConfig:
    """PointRend (facts of detectron2's projects/PointRend)."""

    coarse_side: int = 7
    """Cells along a side of the coarse mask."""
    coarse_hidden: int = 1024
    """Width of the two fully connected layers that predict it."""
    num_layers: int = 3
    """Layers of the point head before its predictor."""
    num_points: int = 196
    """Points of a RoI that carry loss."""
    oversample: int = 3
    """Candidates for each of these points."""
    importance: float = 0.75
    """Share of the points that are the least sure of the candidates."""
    start_side: int = 28
    """Inference predicts every cell of a mask of this side, then doubles it."""
    subdivisions: int = 3
    """How many times; three make 224."""
    subdivision_points: int = 784
    """Cells that are predicted anew after each doubling."""

    def __post_init__(self) -> None:
        counts = (
            self.coarse_side,
            self.coarse_hidden,
            self.num_points,
            self.oversample,
            self.start_side,
            self.subdivision_points,
        )
        raise_all(
            "pointrend",
            [
                (min(counts) > 0, "sides, widths and numbers of points must be positive"),
                (
                    min(self.num_layers, self.subdivisions) >= 0,
                    "num_layers and subdivisions may not be negative",
                ),
                (
                    0 <= self.importance <= 1,
                    f"importance must be in [0, 1], got {self.importance}",
                ),
            ],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskHeadConfig:
    """The mask head: which one, its size, its targets and its losses."""

    kind: Literal["plain", "bmask", "pointrend", "squeeze"] = "squeeze"
    """Mask R-CNN's own head, BMask R-CNN, PointRend, or the boundary squeeze."""
    train_on: Literal["method", "proposals", "predicted"] = "method"
    """The boxes that masks are trained in: proposals, the boxes that the box head makes of them, or
    what the method's authors do: BMask R-CNN and PointRend predicted boxes unless there is a
    cascade, the others proposals."""
    roi_side: int = 14
    """Cells along a side of the pooled RoI; masks have twice as many."""
    channels: int = 256
    """Width of every layer."""
    num_convs: int = 4
    """3 x 3 convolutions before the squeeze or the predictor."""
    squeeze: SqueezeConfig = field(default_factory=SqueezeConfig)
    pointrend: PointRendConfig = field(default_factory=PointRendConfig)
    targets: TargetConfig = field(default_factory=TargetConfig)
    loss_weights: LossWeights = field(default_factory=LossWeights)
    band_loss: BandLoss = "dice"
    """Loss of the contraction and expansion bands (Table 1b)."""
    guided_flow: GuidedFlowConfig = field(default_factory=GuidedFlowConfig)

    def __post_init__(self) -> None:
        raise_all(
            "mask_head",
            [
                *choices(
                    kind=(self.kind, ("plain", "bmask", "pointrend", "squeeze")),
                    train_on=(self.train_on, ("method", "proposals", "predicted")),
                    band_loss=(self.band_loss, get_args(BandLoss)),
                ),
                (
                    min(self.roi_side, self.channels) > 0 and self.num_convs >= 0,
                    "roi_side and channels must be positive, num_convs not negative",
                ),
                (
                    self.guided_flow.weight == 0
                    or (self.kind == "squeeze" and self.squeeze.warp == "flow"),
                    "guided_flow.weight is set, but there is no flow to guide: it needs kind "
                    f'"squeeze" and warp "flow", got "{self.kind}" and "{self.squeeze.warp}"',
                ),
            ],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskRCNNConfig:
    """A whole instance model."""

    task: ClassVar[Literal["instance"]] = "instance"
    """What tells the kinds of models apart where a config is written down."""
    num_classes: int = 80
    """Categories, without background; the mask and box heads both take it from here."""
    trains: Literal["all", "masks"] = "all"
    """Everything, or the masks alone in the boxes of the targets, as a study of mask heads does."""
    weights: str = ""
    """Where the whole model starts: "" is at random, but for the trunk of backbone.weights; else a
    file of this package, torchvision or detectron2, and backbone.weights is not read."""
    weights_leave_out: tuple[str, ...] = ()
    """Parts that stay random although `weights` is given, as box_head.scores; also parts of the
    file that this model does not have."""
    box_convention: BoxConvention = "detectron2"
    """Whose rules turn boxes into cells: those that the weights were trained with. torchvision's:
    RoIAlign without the half-cell shift and with 2 x 2 samples a cell, its rounding between pyramid
    levels, anchors of whole pixels, spaced by image size over grid size, in the padding too, and no
    box thinner than 0.001 px (proposals) or 0.01 px (detections). Training targets and losses stay
    detectron2's."""
    backbone: FpnBackboneConfig = field(default_factory=FpnBackboneConfig)
    proposals: ProposalConfig = field(default_factory=ProposalConfig)
    box_head: BoxHeadConfig = field(default_factory=BoxHeadConfig)
    mask_head: MaskHeadConfig = field(default_factory=MaskHeadConfig)

    def __post_init__(self) -> None:
        raise_all(
            "model",
            [
                (self.num_classes > 0, f"num_classes must be positive, got {self.num_classes}"),
                (
                    bool(self.weights) or not self.weights_leave_out,
                    f"weights_leave_out {self.weights_leave_out} is of weights, and there are none",
                ),
            ],
        )
