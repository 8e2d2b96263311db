"""What a semantic model is made of, as frozen values.

Defaults are the paper's DeepLabV3+ with the boundary squeeze (sec. 4.2) on the constants of the
same authors' DeepLabV3+; where neither says anything, the field says whose choice it is.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from bsm.configs.rules import raise_all
from bsm.configs.shared import BackboneConfig, GuidedFlowConfig, SqueezeConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossEntropyConfig:
    """The loss of the label map itself."""

    kind: Literal["plain", "ohem"] = "plain"
    """The mean over all pixels, or over those that are hard (online hard example mining)."""
    ohem_threshold: float = 0.7
    """A pixel is hard where its own class has at most this probability."""
    ohem_min_kept: int = 10_000
    """In each forward pass at least so many pixels count, the hardest ones."""

    def __post_init__(self) -> None:
        raise_all(
            "cross_entropy",
            [
                (self.kind in {"plain", "ohem"}, f"kind must be plain or ohem, got {self.kind!r}"),
                (
                    0 < self.ohem_threshold <= 1,
                    f"ohem_threshold must be in (0, 1], got {self.ohem_threshold}",
                ),
                (
                    self.ohem_min_kept >= 1,
                    f"ohem_min_kept must be at least 1, got {self.ohem_min_kept}",
                ),
            ],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SemanticTargetConfig:
    """How the boundary, contraction and expansion targets of each class are read from the field."""

    kernel_size: int = 15
    """Side of the square dilation and erosion kernel, in pixels of the crop; odd (sec. 3.2: 15)."""
    unite_boundary: bool = True
    """Unite both bands with the boundary, as the released code does for instances."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class SemanticLossWeights:
    """Weights of the losses; the paper adds them plainly."""

    segmentation: float = 1.0
    """Cross-entropy of the label map, and of PointRend's points."""
    boundary: float = 1.0
    """Cross-entropy and Dice of each class's boundary."""
    contraction: float = 1.0
    """Dice of the bands outside each class."""
    expansion: float = 1.0
    """Dice of the bands inside."""
    auxiliary: float = 0.0
    """Cross-entropy of a second label map, predicted from the stage before the last; 0 builds no
    such head, as in the paper; 0.4 is what others take."""

    def __post_init__(self) -> None:
        values = [getattr(self, name) for name in SemanticLossWeights.__dataclass_fields__]
        raise_all("loss_weights", [(min(values) >= 0, f"no weight may be negative, got {values}")])


@dataclass(frozen=True, kw_only=True, slots=True)
class SemanticPointRendConfig:
    """PointRend on label maps (detectron2's constants for Cityscapes)."""

    channels: int = 256
    """Width of the point head."""
    num_layers: int = 3
    """Its layers before the predictor."""
    num_points: int = 2048
    """Points of an image that carry loss."""
    oversample: int = 3
    """Candidates for each of these points."""
    importance: float = 0.75
    """Share of the points that are the least sure of the candidates."""
    subdivisions: int = 2
    """How often inference doubles the label map; two bring it from a quarter to full size."""
    subdivision_points: int = 8192
    """Cells that are predicted anew after each doubling."""

    def __post_init__(self) -> None:
        counts = (self.channels, self.num_points, self.oversample, self.subdivision_points)
        raise_all(
            "pointrend",
            [
                (min(counts) > 0, "width and numbers of points must be positive"),
                (self.num_layers >= 0, f"num_layers may not be negative, got {self.num_layers}"),
                (
                    0 <= self.subdivisions <= 2,
                    f"subdivisions must be 0 to 2, got {self.subdivisions}: a third one would be "
                    "finer than the image",
                ),
                (
                    0 <= self.importance <= 1,
                    f"importance must be in [0, 1], got {self.importance}",
                ),
            ],
        )


def _whole_map_squeeze() -> SqueezeConfig:
    """The squeeze of a whole map: there are batch statistics, and the decoder does the fusing."""
    return SqueezeConfig(norm="batch", mask_fusion=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class SemanticHeadConfig:
    """What makes a label map of the trunk's features: which head, its targets and its losses."""

    kind: Literal["plain", "pointrend", "squeeze"] = "squeeze"
    """DeepLabV3+ itself, PointRend on top of it, or the boundary squeeze inside of it."""
    aspp_rates: tuple[int, ...] = (6, 12, 18)
    """Dilations of the pyramid's 3 x 3 convolutions at an output stride of 16; at 8, where cells
    are half as wide, they are doubled. On crops of up to 16 x rate pixels the outer taps never see
    a thing, stay as they started, and harm larger images: small crops need small rates."""
    channels: int = 256
    """Width of the pyramid, the squeeze and the decoder."""
    low_level_channels: int = 48
    """Channels that the decoder takes from the first stage's feature."""
    squeeze: SqueezeConfig = field(default_factory=_whole_map_squeeze)
    """Norm "batch" here means batch norm of the kind that `backbone.norm` says."""
    pointrend: SemanticPointRendConfig = field(default_factory=SemanticPointRendConfig)
    targets: SemanticTargetConfig = field(default_factory=SemanticTargetConfig)
    cross_entropy: CrossEntropyConfig = field(default_factory=CrossEntropyConfig)
    loss_weights: SemanticLossWeights = field(default_factory=SemanticLossWeights)
    guided_flow: GuidedFlowConfig = field(default_factory=GuidedFlowConfig)
    """See bsm/semantic/guided_flow.py; a cell of the feature is 8 pixels."""

    def __post_init__(self) -> None:
        kinds = ("plain", "pointrend", "squeeze")
        raise_all(
            "head",
            [
                (self.kind in kinds, f"kind {self.kind!r} is none of {kinds}"),
                (
                    len(self.aspp_rates) > 0 and min(self.aspp_rates) > 0,
                    f"aspp_rates needs positive values, got {self.aspp_rates}",
                ),
                (
                    min(self.channels, self.low_level_channels) > 0,
                    "channels and low_level_channels must be positive",
                ),
                (
                    self.guided_flow.weight == 0
                    or (self.kind == "squeeze" and self.squeeze.warp == "flow"),
                    "guided_flow.weight is set, but there is no flow to guide: it needs kind "
                    f'"squeeze" and warp "flow", got "{self.kind}" and "{self.squeeze.warp}"',
                ),
            ],
        )


def _synchronized_trunk() -> BackboneConfig:
    return BackboneConfig(norm="sync", freeze_at=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeepLabConfig:
    """A whole semantic model."""

    task: ClassVar[Literal["semantic"]] = "semantic"
    """What tells the kinds of models apart where a config is written down."""
    num_classes: int = 19
    """Classes of the label map; void is none of them."""
    weights: str = ""
    """Where the whole model starts: "" is at random, but for the trunk of backbone.weights; else a
    file of this package, and backbone.weights is not read."""
    weights_leave_out: tuple[str, ...] = ()
    """Parts that stay random although `weights` is given, as decoder.predict; also parts of the
    file that this model does not have."""
    backbone: BackboneConfig = field(default_factory=_synchronized_trunk)
    """Its norm is the head's too; the head of a frozen trunk has batch norm."""
    output_stride: Literal[8, 16] = 8
    """Pixels to a cell of the trunk's last feature (sec. 4.2: 8)."""
    head: SemanticHeadConfig = field(default_factory=SemanticHeadConfig)

    def __post_init__(self) -> None:
        raise_all(
            "model",
            [
                (
                    1 < self.num_classes <= 255,
                    f"num_classes must be 2 to 255, got {self.num_classes}: labels are bytes, and "
                    "255 is void",
                ),
                (
                    self.output_stride in {8, 16},
                    f"output_stride must be 8 or 16, got {self.output_stride}",
                ),
            ],
        )
