"""What a model is made of, as frozen values, and the one function that builds it.

Defaults are detectron2's constants for Mask R-CNN with FPN and the paper's for the squeeze, so an
empty config is the paper's model. Every field is checked when a config is made; all that is wrong
with one config is said in one error.
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from bsm.instance.rcnn import MaskRCNN

Geometry = Literal["detectron2", "torchvision"]
"""Whose rules turn boxes into cells; MaskRCNNConfig.geometry lists the differences."""


def _raise_all(part: str, rules: list[tuple[bool, str]]) -> None:
    broken = [rule for holds, rule in rules if not holds]
    if broken:
        raise ValueError(f"{part}: " + "; ".join(broken))


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneConfig:
    """A timm trunk with a feature pyramid on top."""

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
    fpn_channels: int = 256
    """Channels of each pyramid level."""
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """Taken off RGB pixels of 0 to 255."""
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    """Divides RGB pixels after the mean is taken off."""

    def __post_init__(self) -> None:
        _raise_all(
            "backbone",
            [
                (0 <= self.freeze_at <= 5, f"freeze_at must be 0 to 5, got {self.freeze_at}"),
                (self.fpn_channels > 0, f"fpn_channels must be positive, got {self.fpn_channels}"),
                (min(self.pixel_std) > 0, f"pixel_std must be positive, got {self.pixel_std}"),
                (
                    self.norm_eps is None or (self.norm_eps >= 0 and self.norm != "group"),
                    f"norm_eps is of batch norms and at least 0, got {self.norm_eps} with norm "
                    f"{self.norm!r}",
                ),
                (
                    not self.stride_in_1x1 or self.weights != "timm",
                    "stride_in_1x1 is not how timm's weights were trained",
                ),
            ],
        )


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

    def __post_init__(self) -> None:
        _raise_all(
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


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxHeadConfig:
    """The second stage: which RoIs are trained, and the two-layer box head."""

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
    score_threshold: float = 0.05
    """Detections below are dropped."""
    nms_iou: float = 0.5
    """For each category."""
    detections_per_image: int = 100
    """At most so many detections leave an image."""

    def __post_init__(self) -> None:
        _raise_all(
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
class TargetConfig:
    """How the mask, contraction, expansion and boundary targets of a RoI are made."""

    source: Literal["field", "roi"] = "field"
    """Sampled from the precomputed squeeze field, or morphology on each RoI's own mask."""
    kernel_size: int = 5
    """Side of the square dilation and erosion kernel, in RoI cells; odd (sec. 4.2: 5)."""
    unite_boundary: bool = True
    """Unite contraction and expansion targets with the boundary, as the released code does."""

    def __post_init__(self) -> None:
        _raise_all(
            "targets",
            [
                (
                    self.kernel_size >= 3 and self.kernel_size % 2 == 1,
                    f"kernel_size must be odd and at least 3, got {self.kernel_size}",
                )
            ],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SqueezeConfig:
    """The boundary squeeze module."""

    wiring: Literal["paper", "released"] = "released"
    """The paper's text or the authors' released code; bsm/squeeze.py lists each difference."""
    fusion: Literal["plus", "minus"] = "plus"
    """Sign of the RoI feature in eq. 1: the paper adds, most of the released code subtracts."""
    warp: Literal["flow", "none"] = "flow"
    """What fills the generator's slot (Table 1e)."""
    legacy_warp: bool = False
    """The released code's sampling grid, under which zero flow is not the identity."""
    initialization: Literal["released", "kaiming"] = "kaiming"
    """The released N(0, 0.01) towers, or Kaiming towers and a zero flow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossWeights:
    """Weights of the four mask losses; the paper adds them plainly."""

    mask: float = 1.0
    """Binary cross-entropy of the mask."""
    boundary: float = 1.0
    """Cross-entropy and Dice of the boundary."""
    contraction: float = 1.0
    """Dice of the contraction band."""
    expansion: float = 1.0
    """Dice of the expansion band."""

    def __post_init__(self) -> None:
        values = (self.mask, self.boundary, self.contraction, self.expansion)
        _raise_all("loss_weights", [(min(values) >= 0, f"no weight may be negative, got {values}")])


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskHeadConfig:
    """The mask head: which one, its size, its targets and its losses."""

    kind: Literal["plain", "squeeze"] = "squeeze"
    """Mask R-CNN's own head, or the boundary squeeze."""
    roi_side: int = 14
    """Cells along a side of the pooled RoI; masks have twice as many."""
    channels: int = 256
    """Width of every layer."""
    num_convs: int = 4
    """3 x 3 convolutions before the squeeze or the predictor."""
    squeeze: SqueezeConfig = field(default_factory=SqueezeConfig)
    targets: TargetConfig = field(default_factory=TargetConfig)
    loss_weights: LossWeights = field(default_factory=LossWeights)

    def __post_init__(self) -> None:
        _raise_all(
            "mask_head",
            [
                (
                    min(self.roi_side, self.channels) > 0 and self.num_convs >= 0,
                    "roi_side and channels must be positive, num_convs not negative",
                )
            ],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskRCNNConfig:
    """A whole instance model."""

    num_classes: int = 80
    """Categories, without background; the mask and box heads both take it from here."""
    weights: str = ""
    """Where the whole model starts: "" is at random, but for the trunk of backbone.weights; else a
    file of this package, torchvision or detectron2, and backbone.weights is not read."""
    weights_leave_out: tuple[str, ...] = ()
    """Parts that stay random although `weights` is given, as box_head.scores; also parts of the
    file that this model does not have."""
    geometry: Geometry = "detectron2"
    """Whose rules turn boxes into cells: those that the weights were trained with. torchvision's:
    RoIAlign without the half-cell shift and with 2 x 2 samples a cell, its rounding between pyramid
    levels, anchors of whole pixels, spaced by image size over grid size, in the padding too, and no
    box thinner than 0.001 px (proposals) or 0.01 px (detections). Training targets and losses stay
    detectron2's."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    proposals: ProposalConfig = field(default_factory=ProposalConfig)
    box_head: BoxHeadConfig = field(default_factory=BoxHeadConfig)
    mask_head: MaskHeadConfig = field(default_factory=MaskHeadConfig)

    def __post_init__(self) -> None:
        _raise_all(
            "model",
            [
                (self.num_classes > 0, f"num_classes must be positive, got {self.num_classes}"),
                (
                    bool(self.weights) or not self.weights_leave_out,
                    f"weights_leave_out {self.weights_leave_out} is of weights, and there are none",
                ),
            ],
        )


def without_weights(config: MaskRCNNConfig) -> MaskRCNNConfig:
    """The same model from a random start: for weights that would only be overwritten."""
    backbone = replace(config.backbone, weights="")
    return replace(config, weights="", weights_leave_out=(), backbone=backbone)


def build_model(config: MaskRCNNConfig) -> "MaskRCNN":
    """Build the model a config describes, on the CPU, in training mode.

    Raises:
        ValueError: the trunk is unknown to timm, its features do not come at strides 4 to 32, or
            weights do not fit.
    """
    from bsm.checkpoints.load import load_model  # noqa: PLC0415  these read the configs
    from bsm.instance.rcnn import MaskRCNN  # noqa: PLC0415

    if not config.weights:
        return MaskRCNN(config)
    model = MaskRCNN(without_weights(config))
    load_model(model, config)
    return model
