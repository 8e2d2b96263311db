"""What a model is made of, as frozen values, and the one function that builds it.

Defaults are detectron2's constants for Mask R-CNN with FPN and the paper's for the squeeze, so an
empty config is the paper's model. Every field is checked when a config is made; all that is wrong
with one config is said in one error.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, get_args, overload

if TYPE_CHECKING:
    from bsm.instance.rcnn import MaskRCNN
    from bsm.semantic.config import DeepLabConfig
    from bsm.semantic.deeplab import DeepLab


def _raise_all(part: str, rules: list[tuple[bool, str]]) -> None:
    broken = [rule for holds, rule in rules if not holds]
    if broken:
        raise ValueError(f"{part}: " + "; ".join(broken))


def _choices(**choices: tuple[str, tuple[str, ...]]) -> list[tuple[bool, str]]:
    """Rules for a config that is made in Python, where nothing checks a Literal."""
    return [
        (value in allowed, f"{name} {value!r} is none of {allowed}")
        for name, (value, allowed) in choices.items()
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrunkConfig:
    """A timm model without its classifier, and what it does to pixels first."""

    name: str = "resnet50"
    """Any timm model that gives features at strides 4, 8, 16 and 32."""
    weights: str = ""
    """Where the trunk starts: "" is random, "timm" is timm's pretrained weights, else a file."""
    norm: Literal["frozen", "batch", "sync", "group"] = "frozen"
    """Frozen statistics need pretrained weights; from scratch take batch, sync (GPUs) or group."""
    freeze_at: int = 2
    """How much of the trunk stays as it is: 0 nothing, 1 the stem, 2 the first stage too, ..."""
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """Taken off RGB pixels of 0 to 255."""
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    """Divides RGB pixels after the mean is taken off."""

    def __post_init__(self) -> None:
        _raise_all("backbone", _trunk_rules(self))


def _trunk_rules(trunk: TrunkConfig) -> list[tuple[bool, str]]:
    return [
        (0 <= trunk.freeze_at <= 5, f"freeze_at must be 0 to 5, got {trunk.freeze_at}"),
        (min(trunk.pixel_std) > 0, f"pixel_std must be positive, got {trunk.pixel_std}"),
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneConfig(TrunkConfig):
    """A trunk with a feature pyramid on top."""

    fpn_channels: int = 256
    """Channels of each pyramid level."""

    def __post_init__(self) -> None:
        positive = f"fpn_channels must be positive, got {self.fpn_channels}"
        _raise_all("backbone", [*_trunk_rules(self), (self.fpn_channels > 0, positive)])


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


Branch = Literal["boundary", "contraction", "expansion"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SqueezeConfig:
    """The boundary squeeze module; bsm/squeeze.py says what each choice does."""

    wiring: Literal["paper", "released", "light"] = "released"
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
    """The 3 x 3 convolution that ends the released wiring."""
    warp: Literal["flow", "dcnv2", "dgmn", "none"] = "flow"
    """What fills the generator's slot (Table 1e)."""
    legacy_warp: bool = False
    """The released code's sampling grid, under which zero flow is not the identity."""
    initialization: Literal["released", "kaiming"] = "kaiming"
    """The released N(0, 0.01) towers, or Kaiming towers and a zero flow."""
    norm: Literal["none", "batch", "group"] = "none"
    """After each convolution but the flow's; nothing in the paper's heads for RoIs."""
    light_channels: int = 64
    """Width at which the light wiring squeezes."""

    def __post_init__(self) -> None:
        light = self.wiring == "light"
        plain = SqueezeConfig.__dataclass_fields__
        fixed = ("branches", "fine_features", "mask_feature", "boundary_to_mask")
        switched = [name for name in fixed if getattr(self, name) != plain[name].default]
        _raise_all(
            "squeeze",
            [
                *_choices(
                    wiring=(self.wiring, ("paper", "released", "light")),
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
                    f"the light wiring has no switch {', '.join(switched)}; "
                    'take wiring "released" or "paper" for that ablation',
                ),
                (
                    not (light and self.warp in {"dcnv2", "dgmn"}),
                    f'the light wiring warps by flow or not at all, got warp "{self.warp}"',
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
        _raise_all(
            "guided_flow",
            [
                (self.weight >= 0, f"weight may not be negative, got {self.weight}"),
                (self.reach > 0, f"reach must be positive, got {self.reach}"),
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
        _raise_all("loss_weights", [(min(values) >= 0, f"no weight may be negative, got {values}")])


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
        _raise_all(
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
        _raise_all(
            "mask_head",
            [
                *_choices(
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
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    proposals: ProposalConfig = field(default_factory=ProposalConfig)
    box_head: BoxHeadConfig = field(default_factory=BoxHeadConfig)
    mask_head: MaskHeadConfig = field(default_factory=MaskHeadConfig)

    def __post_init__(self) -> None:
        _raise_all(
            "model",
            [(self.num_classes > 0, f"num_classes must be positive, got {self.num_classes}")],
        )


@overload
def build_model(config: MaskRCNNConfig) -> "MaskRCNN": ...
@overload
def build_model(config: "DeepLabConfig") -> "DeepLab": ...


def build_model(config: "MaskRCNNConfig | DeepLabConfig") -> "MaskRCNN | DeepLab":
    """Build the model a config describes, on the CPU, in training mode.

    Raises:
        ValueError: timm does not know the trunk, or its features have not the strides of the model.
    """
    # Models read these configs, so they are imported where they are built.
    if isinstance(config, MaskRCNNConfig):
        from bsm.instance.rcnn import MaskRCNN  # noqa: PLC0415

        return MaskRCNN(config)
    from bsm.semantic.deeplab import DeepLab  # noqa: PLC0415

    return DeepLab(config)
