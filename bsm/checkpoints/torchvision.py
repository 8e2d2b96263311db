"""torchvision's Mask R-CNN (maskrcnn_resnet50_fpn and its _v2): read its weights and write them.

Its ResNets have the same names as timm's. Other differences are in the config: `box_convention`,
`backbone.norm_eps` 0 for the weights that torchvision publishes as COCO_V1 of the first version,
and the norms and convolutions that the second version adds.
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


_BOX_CONVS = 4


def _list_v2_modules() -> dict[str, str]:
    """List the modules of version 2 whose names differ: convolutions are followed by norms."""
    modules = {"proposals.more_convs.0": "rpn.head.conv.1.0"}
    for part in ("0", "1"):  # a convolution and its norm
        for i in range(_PYRAMID_LEVELS):
            modules[f"backbone.laterals.{i}.{part}"] = f"backbone.fpn.inner_blocks.{i}.{part}"
            modules[f"backbone.outputs.{i}.{part}"] = f"backbone.fpn.layer_blocks.{i}.{part}"
        for i in range(_BOX_CONVS):
            modules[f"box_head.convs.{2 * i}.{part}"] = f"roi_heads.box_head.{i}.{part}"
        for i in range(_MASK_CONVS):
            modules[f"mask_head.convs.{2 * i}.{part}"] = f"roi_heads.mask_head.{i}.{part}"
    return modules


_V2_MODULES = _list_v2_modules()
_V2_FC = "roi_heads.box_head.5"
"""The only fully connected layer, after four convolutions and a flattening."""


def _to_external_name(ours: str) -> str | None:
    if ours.startswith("backbone.trunk."):
        return ours.replace("backbone.trunk.", "backbone.body.", 1)
    module, _, tensor = ours.rpartition(".")
    modules = _MODULES | _V2_MODULES
    return f"{modules[module]}.{tensor}" if module in modules else None


def _to_external_name_v2(ours: str) -> str | None:
    module, _, tensor = ours.rpartition(".")
    return f"{_V2_FC}.{tensor}" if module == "box_head.fc1" else _to_external_name(ours)


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


_CONVERSIONS = {
    "box_head.scores": BACKGROUND_LAST,
    **{
        ours: drop_background_rows(BACKGROUND_ROWS[theirs])
        for ours, theirs in _MODULES.items()
        if theirs in BACKGROUND_ROWS
    },
}

MASK_RCNN = Layout(
    title="torchvision's Mask R-CNN",
    signature_key="roi_heads.box_head.fc6.weight",
    to_external_name=_to_external_name,
    conversions=_CONVERSIONS,
    upgrade_names=_upgrade_names,
)

MASK_RCNN_V2 = Layout(
    title="torchvision's Mask R-CNN V2",
    signature_key=f"{_V2_FC}.weight",
    to_external_name=_to_external_name_v2,
    conversions=_CONVERSIONS,
)


def to_torchvision(model: nn.Module) -> dict[str, Tensor]:
    """Export a plain Mask R-CNN as a state_dict for torchvision's `maskrcnn_resnet50_fpn`.

    A model with the parts of the second version is one for `maskrcnn_resnet50_fpn_v2`. The rows of
    `BACKGROUND_ROWS` are zeros. torchvision counts categories from 1.

    Raises:
        ValueError: the model has parts that torchvision's does not have.
    """
    state = model.state_dict()
    is_v2 = "box_head.convs.0.0.weight" in state
    return export_tensors(MASK_RCNN_V2 if is_v2 else MASK_RCNN, state)
