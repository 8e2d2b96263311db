"""torchvision's Mask R-CNN (maskrcnn_resnet50_fpn, version 1): read its weights and write them.

Its ResNets have the same names as timm's. Other differences are in the config: `box_convention`,
and `backbone.norm_eps` 0 for the weights that torchvision publishes as COCO_V1.
"""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from bsm.checkpoints.layouts import BACKGROUND_LAST, Layout, drop_background_rows, export_tensors

_PYRAMID_LEVELS = 4
_MASK_CONVS = 4

BACKGROUND_ROWS = {
    "roi_heads.box_predictor.bbox_pred": 4,
    "roi_heads.mask_predictor.mask_fcn_logits": 1,
}
"""Leading rows of torchvision's modules for the background's regression and mask, which it never
uses. Our model has none: they are dropped on reading and written as zeros."""


_MODULES = {
    **{
        f"backbone.{ours}.{level}": f"backbone.fpn.{theirs}.{level}.0"
        for ours, theirs in (("laterals", "inner_blocks"), ("outputs", "layer_blocks"))
        for level in range(_PYRAMID_LEVELS)
    },
    "proposals.conv": "rpn.head.conv.0.0",
    "proposals.objectness": "rpn.head.cls_logits",
    "proposals.deltas": "rpn.head.bbox_pred",
    "box_head.fc1": "roi_heads.box_head.fc6",
    "box_head.fc2": "roi_heads.box_head.fc7",
    "box_head.scores": "roi_heads.box_predictor.cls_score",
    "box_head.deltas": "roi_heads.box_predictor.bbox_pred",
    # Our convolutions have a ReLU between them, so every second module.
    **{f"mask_head.convs.{2 * i}": f"roi_heads.mask_head.{i}.0" for i in range(_MASK_CONVS)},
    "mask_head.mask.deconv": "roi_heads.mask_predictor.conv5_mask",
    "mask_head.mask.logits": "roi_heads.mask_predictor.mask_fcn_logits",
}
"""torchvision's name of each of our modules, except the backbone's."""


def _to_external_name(ours: str) -> str | None:
    if ours.startswith("backbone.trunk."):
        return ours.replace("backbone.trunk.", "backbone.body.", 1)
    module, _, tensor = ours.rpartition(".")
    return f"{_MODULES[module]}.{tensor}" if module in _MODULES else None


_RENAMES = (
    (r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)", r"\1.0.\2"),
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
)
"""From names before torchvision 0.13, which its published files still use."""


def _upgrade_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {_upgrade_name(name): value for name, value in tensors.items()}


def _upgrade_name(name: str) -> str:
    if old := re.fullmatch(r"roi_heads\.mask_head\.mask_fcn(\d)\.(weight|bias)", name):
        return f"roi_heads.mask_head.{int(old[1]) - 1}.0.{old[2]}"
    for pattern, replacement in _RENAMES:
        name = re.sub(f"^{pattern}$", replacement, name)
    return name


MASK_RCNN = Layout(
    title="torchvision's Mask R-CNN",
    signature_key="roi_heads.box_head.fc6.weight",
    to_external_name=_to_external_name,
    conversions={
        "box_head.scores": BACKGROUND_LAST,
        **{
            ours: drop_background_rows(BACKGROUND_ROWS[theirs])
            for ours, theirs in _MODULES.items()
            if theirs in BACKGROUND_ROWS
        },
    },
    upgrade_names=_upgrade_names,
)


def to_torchvision(model: nn.Module) -> dict[str, Tensor]:
    """Export a plain Mask R-CNN as a state_dict for torchvision's `maskrcnn_resnet50_fpn`.

    The rows of `BACKGROUND_ROWS` are zeros. torchvision counts categories from 1.

    Raises:
        ValueError: the model has parts that torchvision's does not have.
    """
    return export_tensors(MASK_RCNN, model.state_dict())
