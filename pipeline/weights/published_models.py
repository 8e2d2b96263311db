"""The models of published weights: the config that they fit, and their categories.

A file has shapes, but not the rules by which it was trained; those are here.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from bsm.configs.instance import BoxHeadConfig, MaskHeadConfig, MaskRCNNConfig, ProposalConfig
from bsm.configs.models import ModelConfig
from bsm.configs.shared import FpnBackboneConfig
from pipeline.recipe_json import leaves, to_plain
from pipeline.weights.names import DETECTRON2, TORCHVISION


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedModel:
    """A model that somebody trained."""

    config: MaskRCNNConfig
    data: str = "coco"
    """What it was trained on."""


_PLAIN = MaskHeadConfig(kind="plain")
_MSRA_R50 = FpnBackboneConfig(name="resnet50", stride_in_1x1=True, pixel_std=(1.0, 1.0, 1.0))
_MSRA_R101 = FpnBackboneConfig(name="resnet101", stride_in_1x1=True, pixel_std=(1.0, 1.0, 1.0))
_CASCADE = MaskRCNNConfig(
    backbone=_MSRA_R50,
    # As detectron2 trains cascades.
    proposals=ProposalConfig(top_k_after_nms=2000),
    box_head=BoxHeadConfig(kind="cascade"),
    mask_head=_PLAIN,
)

MODELS: dict[str, PublishedModel] = {
    f"{TORCHVISION}MaskRCNN_ResNet50_FPN_Weights.COCO_V1": PublishedModel(
        config=MaskRCNNConfig(
            num_classes=90,
            box_convention="torchvision",
            # torchvision sets it to 0 for these weights.
            backbone=FpnBackboneConfig(norm_eps=0.0),
            mask_head=_PLAIN,
        ),
        data="coco with gaps",
    ),
    f"{TORCHVISION}MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1": PublishedModel(
        config=MaskRCNNConfig(
            num_classes=90,
            box_convention="torchvision",
            head_norm="frozen",
            proposals=ProposalConfig(num_convs=2),
            box_head=BoxHeadConfig(num_convs=4, num_fcs=1),
            mask_head=_PLAIN,
        ),
        data="coco with gaps",
    ),
    f"{DETECTRON2}COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x": PublishedModel(
        config=MaskRCNNConfig(backbone=_MSRA_R50, mask_head=_PLAIN)
    ),
    f"{DETECTRON2}COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x": PublishedModel(
        config=MaskRCNNConfig(backbone=_MSRA_R50, mask_head=_PLAIN)
    ),
    f"{DETECTRON2}COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x": PublishedModel(
        config=MaskRCNNConfig(backbone=_MSRA_R101, mask_head=_PLAIN)
    ),
    f"{DETECTRON2}COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x": PublishedModel(
        config=MaskRCNNConfig(backbone=FpnBackboneConfig(name="resnext101_32x8d"), mask_head=_PLAIN)
    ),
    f"{DETECTRON2}Cityscapes/mask_rcnn_R_50_FPN": PublishedModel(
        config=MaskRCNNConfig(num_classes=8, backbone=_MSRA_R50, mask_head=_PLAIN),
        data="cityscapes",
    ),
    f"{DETECTRON2}Misc/cascade_mask_rcnn_R_50_FPN_1x": PublishedModel(config=_CASCADE),
    f"{DETECTRON2}Misc/cascade_mask_rcnn_R_50_FPN_3x": PublishedModel(config=_CASCADE),
}
"""By name. Pixels are normalized by ImageNet's mean and deviation where nothing else is said."""

_INVISIBLE = (
    "box_convention",
    "backbone.norm_eps",
    "backbone.stride_in_1x1",
    "backbone.pixel_mean",
    "backbone.pixel_std",
)
"""Fields that change no shape: with another value the weights load, and predict nonsense."""
_SHAPES = (
    "num_classes",
    "head_norm",
    "backbone.name",
    "backbone.fpn_channels",
    "proposals.num_convs",
    "box_head.kind",
    "box_head.num_convs",
    "box_head.num_fcs",
    "box_head.hidden",
    "mask_head.kind",
    "mask_head.channels",
    "mask_head.num_convs",
)
"""Fields that change the shapes or names of weights."""

_CITYSCAPES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")


def list_categories(name: str) -> tuple[str, ...]:
    """Return the names of a published model's categories, in its own order."""
    data = MODELS[name].data
    if data == "cityscapes":
        return _CITYSCAPES
    # Not at the top: it imports torch.
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights  # noqa: PLC0415

    # torchvision keeps the ids of COCO, of which ten are unused.
    names = tuple(MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:])
    return names if data == "coco with gaps" else tuple(each for each in names if each != "N/A")


def find_conflicts(name: str, model: ModelConfig) -> list[str]:
    """List flags for the fields that a published model needs otherwise, though it would load."""
    if name not in MODELS:
        return []
    return list(_list_flags(MODELS[name].config, model, fields=_INVISIBLE))


def describe_config(name: str, model: ModelConfig) -> str:
    """Return the flags that turn a model's config into the published one's; "" if unknown."""
    if name not in MODELS:
        return ""
    return " ".join(_list_flags(MODELS[name].config, model, fields=(*_SHAPES, *_INVISIBLE)))


def _list_flags(
    wanted: MaskRCNNConfig, model: ModelConfig, *, fields: tuple[str, ...]
) -> Iterator[str]:
    theirs, ours = leaves(to_plain(wanted)), leaves(to_plain(model))
    for path in fields:
        if ours.get(path) != theirs[path]:
            yield _format_flag(f"model.{path}", theirs[path])


def _format_flag(path: str, value: object) -> str:
    section, _, name = path.replace("_", "-").rpartition(".")
    if isinstance(value, bool):
        return f"--{section}.{'' if value else 'no-'}{name}"
    if isinstance(value, list):
        return f"--{section}.{name} {' '.join(f'{each:g}' for each in value)}"
    shown = value if isinstance(value, str) and value else json.dumps(value).replace("null", "None")
    return f"--{section}.{name} {shown}"
