"""What the parts of models are made of, as frozen values, and the one function that builds a model.

Defaults are the paper's for the squeeze; what only instance or semantic models have is in
bsm/instance/config.py and bsm/semantic/config.py. Every field is checked when a config is made; all
that is wrong with one config is said in one error.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from bsm.rules import choices, raise_all

if TYPE_CHECKING:
    from bsm.instance.config import MaskRCNNConfig
    from bsm.instance.rcnn import MaskRCNN
    from bsm.semantic.config import DeepLabConfig
    from bsm.semantic.deeplab import DeepLab

    Model = TypeVar("Model", bound=MaskRCNNConfig | DeepLabConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrunkConfig:
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


def _trunk_rules(trunk: TrunkConfig) -> list[tuple[bool, str]]:
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
class BackboneConfig(TrunkConfig):
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
        raise_all(
            "squeeze",
            [
                *choices(
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


def without_weights(config: "Model") -> "Model":
    """The same model from a random start: for weights that would only be overwritten."""
    # Each kind of model has a trunk of its own kind, and gets the same one back.
    backbone: Any = replace(config.backbone, weights="")
    return replace(config, weights="", weights_leave_out=(), backbone=backbone)


@overload
def build_model(config: "MaskRCNNConfig") -> "MaskRCNN": ...
@overload
def build_model(config: "DeepLabConfig") -> "DeepLab": ...


def build_model(config: "MaskRCNNConfig | DeepLabConfig") -> "MaskRCNN | DeepLab":
    """Build the model a config describes, on the CPU, in training mode.

    Raises:
        ValueError: timm does not know the trunk, its features have not the strides of the model, or
            weights do not fit.
    """
    # Models read these configs, so they are imported where they are built.
    from bsm.checkpoints.load import load_model  # noqa: PLC0415

    if not config.weights:
        return _build(config)
    model = _build(without_weights(config))
    load_model(model, config)
    return model


def _build(config: "MaskRCNNConfig | DeepLabConfig") -> "MaskRCNN | DeepLab":
    from bsm.instance.config import MaskRCNNConfig  # noqa: PLC0415

    if isinstance(config, MaskRCNNConfig):
        from bsm.instance.rcnn import MaskRCNN  # noqa: PLC0415

        return MaskRCNN(config)
    from bsm.semantic.deeplab import DeepLab  # noqa: PLC0415

    return DeepLab(config)
