"""torchvision's Mask R-CNN (maskrcnn_resnet50_fpn, the first version): its names, both ways.

Its ResNets need no map: timm gave its own the same names. What else differs is in the config:
`box_convention`, and `backbone.norm_eps` 0 for the weights that torchvision publishes as COCO_V1.
"""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from bsm.checkpoints.layouts import BACKGROUND_LAST, Layout, without_background_rows, write

_PYRAMID_LEVELS = 4
_MASK_CONVS = 4

BACKGROUND_ROWS = {
    "roi_heads.box_predictor.bbox_pred": 4,
    "roi_heads.mask_predictor.mask_fcn_logits": 1,
}
"""Rows that these modules of torchvision begin with and never use: the regression and the mask of
the background. Our model has none, so they are dropped on the way in and zeros on the way out."""


def _pyramid() -> dict[str, str]:
    return {
        f"backbone.{ours}.{level}": f"backbone.fpn.{theirs}.{level}.0"
        for ours, theirs in (("laterals", "inner_blocks"), ("outputs", "layer_blocks"))
        for level in range(_PYRAMID_LEVELS)
    }


def _proposals() -> dict[str, str]:
    return {
        "proposals.conv": "rpn.head.conv.0.0",
        "proposals.objectness": "rpn.head.cls_logits",
        "proposals.deltas": "rpn.head.bbox_pred",
    }


def _box_head() -> dict[str, str]:
    return {
        "box_head.fc1": "roi_heads.box_head.fc6",
        "box_head.fc2": "roi_heads.box_head.fc7",
        "box_head.scores": "roi_heads.box_predictor.cls_score",
        "box_head.deltas": "roi_heads.box_predictor.bbox_pred",
    }


def _mask_head() -> dict[str, str]:
    # Ours counts the ReLUs between the convolutions.
    convs = {f"mask_head.convs.{2 * i}": f"roi_heads.mask_head.{i}.0" for i in range(_MASK_CONVS)}
    return convs | {
        "mask_head.mask.deconv": "roi_heads.mask_predictor.conv5_mask",
        "mask_head.mask.logits": "roi_heads.mask_predictor.mask_fcn_logits",
    }


_MODULES = _pyramid() | _proposals() | _box_head() | _mask_head()


def _their_name(ours: str) -> str | None:
    if ours.startswith("backbone.trunk."):
        return ours.replace("backbone.trunk.", "backbone.body.", 1)
    module, _, tensor = ours.rpartition(".")
    return f"{_MODULES[module]}.{tensor}" if module in _MODULES else None


_OLDER = (
    (r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)", r"\1.0.\2"),
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
)
"""Names before torchvision 0.13, which its published files still have."""


def _newest_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {_newest_name(name): value for name, value in tensors.items()}


def _newest_name(name: str) -> str:
    if old := re.fullmatch(r"roi_heads\.mask_head\.mask_fcn(\d)\.(weight|bias)", name):
        return f"roi_heads.mask_head.{int(old[1]) - 1}.0.{old[2]}"
    for pattern, replacement in _OLDER:
        name = re.sub(f"^{pattern}$", replacement, name)
    return name


MASK_RCNN = Layout(
    title="torchvision's Mask R-CNN",
    told_by="roi_heads.box_head.fc6.weight",
    their_name=_their_name,
    changes={
        "box_head.scores": BACKGROUND_LAST,
        **{
            ours: without_background_rows(BACKGROUND_ROWS[theirs])
            for ours, theirs in _MODULES.items()
            if theirs in BACKGROUND_ROWS
        },
    },
    newest_names=_newest_names,
)


def to_torchvision(model: nn.Module) -> dict[str, Tensor]:
    """The state of a plain Mask R-CNN as torchvision's `maskrcnn_resnet50_fpn` loads it.

    The rows of `BACKGROUND_ROWS` are zeros. torchvision counts categories from 1.

    Raises:
        ValueError: the model has parts that torchvision's does not have.
    """
    return write(MASK_RCNN, model.state_dict())
