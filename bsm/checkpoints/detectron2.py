"""detectron2's parameter names: its ResNets, the Caffe2 backbones it starts from, its detectors.

The names alone identify a layout, and the layout gives the color order: Caffe2 backbones (MSRA's
R-50.pkl and R-101.pkl, FAIR's ResNeXts) and the models of detectron2's zoo read BGR, backbones that
its tool converts from torchvision read RGB.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bsm.checkpoints.layouts import ColorOrder, Layout
from bsm.configs.instance import CASCADE_WEIGHTS, MaskRCNNConfig, ProposalConfig
from bsm.configs.shared import BackboneConfig

_BRANCH = {"1": "a", "2": "b", "3": "c"}
_CAFFE2_TENSORS = {"weight": "gamma", "bias": "beta"}
_OLDER_CAFFE2 = {"s": "gamma", "b": "beta", "rm": "running_mean", "riv": "running_var"}
_FUSED_EPS = 1e-5
"""A norm adds this to the variance: 1 - eps gives exactly Caffe2's factor. detectron2 loads a
variance of 1.0, which makes every factor smaller by 5e-6 of itself."""
_MASK_CONVS = 4
_POINT_LAYERS = 3
_COARSE_HEAD = "roi_heads.mask_head.coarse_head"
_POINT_HEAD = "roi_heads.mask_head.point_head"


def to_resnet_name(ours: str) -> str | None:
    """Translate a name of timm's ResNet to detectron2's: layer1.0.conv2 to res2.0.conv2."""
    if stem := re.fullmatch(r"(conv|bn)1\.(\w+)", ours):
        return "stem.conv1." + ("norm." if stem[1] == "bn" else "") + stem[2]
    if block := re.fullmatch(r"layer(\d)\.(\d+)\.(conv|bn)(\d)\.(\w+)", ours):
        stage, index, kind, conv, tensor = block.groups()
        norm = "norm." if kind == "bn" else ""
        return f"res{int(stage) + 1}.{index}.conv{conv}.{norm}{tensor}"
    if shortcut := re.fullmatch(r"layer(\d)\.(\d+)\.downsample\.([01])\.(\w+)", ours):
        stage, index, part, tensor = shortcut.groups()
        norm = "norm." if part == "1" else ""
        return f"res{int(stage) + 1}.{index}.shortcut.{norm}{tensor}"
    return None


def to_caffe2_name(ours: str) -> str | None:
    """Translate a name of timm's ResNet to Caffe2's: layer1.0.conv2 to res2_0_branch2b."""
    module, _, tensor = ours.rpartition(".")
    norm = _CAFFE2_TENSORS.get(tensor, tensor)
    if module == "conv1":
        return "conv1_w"
    if module == "bn1":
        return f"res_conv1_bn_{norm}"
    if block := re.fullmatch(r"layer(\d)\.(\d+)\.(conv|bn)([123])", module):
        stage, index, kind, conv = block.groups()
        branch = f"res{int(stage) + 1}_{index}_branch2{_BRANCH[conv]}"
        return f"{branch}_w" if kind == "conv" else f"{branch}_bn_{norm}"
    if shortcut := re.fullmatch(r"layer(\d)\.(\d+)\.downsample\.([01])", module):
        stage, index, part = shortcut.groups()
        branch = f"res{int(stage) + 1}_{index}_branch1"
        return f"{branch}_w" if part == "0" else f"{branch}_bn_{norm}"
    return None


def _has_fused_norms(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether batch norms are folded into a factor and a shift, without statistics."""
    return not any(name.endswith(("_bn_rm", "_bn_running_mean")) for name in tensors)


def _upgrade_caffe2_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    result = {}
    for name, value in tensors.items():
        norm, dot, tensor = name.rpartition("_bn_")
        result[f"{norm}{dot}{_OLDER_CAFFE2.get(tensor, tensor)}" if norm else name] = value
    if _has_fused_norms(tensors):
        for name, value in list(result.items()):
            if name.endswith("_bn_gamma"):
                norm = name.removesuffix("gamma")
                result[norm + "running_mean"] = torch.zeros_like(value)
                result[norm + "running_var"] = torch.full_like(value, 1 - _FUSED_EPS)
    return {name: value for name, value in result.items() if not name.endswith("_momentum")}


CAFFE2_RESNET = Layout(
    title="a Caffe2 ResNet",
    signature_key="res2_0_branch2a_w",
    to_external_name=to_caffe2_name,
    color_order="bgr",
    upgrade_names=_upgrade_caffe2_names,
    # The classifier, and a bias before the first norm, which detectron2 ignores too.
    ignored_prefixes=("fc1000_w", "fc1000_b", "pred_w", "pred_b", "conv1_b"),
)

RESNET = Layout(
    title="a detectron2 ResNet",
    signature_key="res2.0.conv1.weight",
    to_external_name=to_resnet_name,
    ignored_prefixes=("stem.fc", "linear"),
)


def check_caffe2_config(tensors: Mapping[str, Tensor], config: BackboneConfig) -> list[str]:
    """List the config fields that conflict with how a Caffe2 backbone was trained."""
    wide, grouped = tensors.get("res2_0_branch2a_w"), tensors.get("res2_0_branch2b_w")
    is_resnext = wide is not None and grouped is not None and grouped.shape[1] < len(wide)
    problems = []
    if is_resnext == config.stride_in_1x1:
        flag = "no-stride-in-1x1" if is_resnext else "stride-in-1x1"
        where = "3 x 3" if is_resnext else "1 x 1"
        problems.append(
            f"Caffe2's {'ResNeXts' if is_resnext else 'ResNets (MSRA)'} have their strides in the "
            f"{where} convolutions. Type: --model.backbone.{flag}"
        )
    if not is_resnext and config.pixel_std != (1.0, 1.0, 1.0):
        problems.append(
            f"MSRA's ResNets read pixels with pixel_std 1; it is {config.pixel_std}. "
            "Type: --model.backbone.pixel-std 1 1 1"
        )
    if _has_fused_norms(tensors) and config.norm != "frozen":
        problems.append(
            "the file's batch norms are folded into a factor and a shift and have no statistics to "
            f"train; norm is {config.norm}. Type: --model.backbone.norm frozen"
        )
    return problems


_MODULES = {
    **{
        f"backbone.{ours}s.{level}": f"backbone.fpn_{ours}{level + 2}"
        for ours in ("lateral", "output")
        for level in range(4)
    },
    "proposals.conv": "proposal_generator.rpn_head.conv",
    "proposals.objectness": "proposal_generator.rpn_head.objectness_logits",
    "proposals.deltas": "proposal_generator.rpn_head.anchor_deltas",
    "box_head.fc1": "roi_heads.box_head.fc1",
    "box_head.fc2": "roi_heads.box_head.fc2",
    "box_head.scores": "roi_heads.box_predictor.cls_score",
    "box_head.deltas": "roi_heads.box_predictor.bbox_pred",
    **{
        f"box_head.stages.{stage}.{ours}": f"roi_heads.{theirs.format(stage)}"
        for stage in range(len(CASCADE_WEIGHTS))
        for ours, theirs in (
            ("fc1", "box_head.{}.fc1"),
            ("fc2", "box_head.{}.fc2"),
            ("scores", "box_predictor.{}.cls_score"),
            ("deltas", "box_predictor.{}.bbox_pred"),
        )
    },
    # Our convolutions have a ReLU between them, so every second module.
    **{
        f"mask_head.convs.{2 * i}": f"roi_heads.mask_head.mask_fcn{i + 1}"
        for i in range(_MASK_CONVS)
    },
    "mask_head.mask.deconv": "roi_heads.mask_head.deconv",
    "mask_head.mask.logits": "roi_heads.mask_head.predictor",
    **{f"mask_head.point.layers.{i}": f"{_POINT_HEAD}.fc{i + 1}" for i in range(_POINT_LAYERS)},
    "mask_head.point.logits": f"{_POINT_HEAD}.predictor",
    "mask_head.coarse.reduce.0": f"{_COARSE_HEAD}.reduce_spatial_dim_conv",
    "mask_head.coarse.fc1": f"{_COARSE_HEAD}.fc1",
    "mask_head.coarse.fc2": f"{_COARSE_HEAD}.fc2",
    "mask_head.coarse.mask": f"{_COARSE_HEAD}.prediction",
}
"""detectron2's name of each of our modules, except the backbone's."""


def _upgrade_model_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename PointRend's heads, which had other names before version 2."""
    older = {
        "roi_heads.mask_coarse_head.coarse_mask_fc": f"{_COARSE_HEAD}.fc",
        "roi_heads.mask_coarse_head": _COARSE_HEAD,
        "roi_heads.mask_point_head": _POINT_HEAD,
    }
    result = {}
    for name, value in tensors.items():
        prefix = next((old for old in older if name.startswith(old)), "")
        result[older.get(prefix, "") + name.removeprefix(prefix)] = value
    return result


_BACKBONE, _BOTTOM_UP = "backbone.trunk.", "backbone.bottom_up."
_ANCHORS = "proposal_generator.anchor_generator.cell_anchors"


def _to_external_name(ours: str) -> str | None:
    if ours.startswith(_BACKBONE):
        name = to_resnet_name(ours.removeprefix(_BACKBONE))
        return None if name is None else _BOTTOM_UP + name
    module, _, tensor = ours.rpartition(".")
    return f"{_MODULES[module]}.{tensor}" if module in _MODULES else None


MASK_RCNN = Layout(
    title="detectron2's Mask R-CNN",
    signature_key="proposal_generator.rpn_head.conv.weight",
    to_external_name=_to_external_name,
    color_order="bgr",
    upgrade_names=_upgrade_model_names,
    # Settings, not weights: `check_saved_settings` compares them with the config.
    ignored_prefixes=("pixel_mean", "pixel_std", _ANCHORS),
)


def check_saved_settings(
    tensors: Mapping[str, Tensor], config: MaskRCNNConfig, *, color_order: ColorOrder
) -> list[str]:
    """List the config fields that conflict with the settings in older detectron2 files.

    Args:
        tensors: content of a whole model's file.
        config: of our model.
        color_order: of the file.
    """
    return [
        *_check_pixels(tensors, config.backbone, color_order=color_order),
        *_check_anchors(tensors, config.proposals),
    ]


def _check_pixels(
    tensors: Mapping[str, Tensor], config: BackboneConfig, *, color_order: ColorOrder
) -> list[str]:
    problems = []
    for name, ours in (("pixel_mean", config.pixel_mean), ("pixel_std", config.pixel_std)):
        if name not in tensors:
            continue
        values = tensors[name].flatten().tolist()
        theirs = values[::-1] if color_order == "bgr" else values
        if _is_close(theirs, ours):
            continue
        flag = f"--model.backbone.{name.replace('_', '-')} {_join(theirs)}"
        if _is_close(theirs[::-1], ours):
            other = "rgb" if color_order == "bgr" else "bgr"
            flag = f"--model.backbone.weights-color-order {other}"
        problems.append(
            f"{name} is {_join(theirs)} in the file, read as {color_order}, and "
            f"{_join(ours)} here (red, green, blue). Type: {flag}"
        )
    return problems


def _check_anchors(tensors: Mapping[str, Tensor], config: ProposalConfig) -> list[str]:
    levels = [tensors.get(f"{_ANCHORS}.{i}") for i in range(len(config.anchor_sizes_px))]
    cells = [cell[:, 2:] - cell[:, :2] for cell in levels if cell is not None]
    ours = [torch.tensor(config.anchor_shapes(level=i)) for i in range(len(levels))]
    if len(cells) < len(levels) or all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-3)
        for a, b in zip(cells, ours, strict=True)
    ):
        return []  # newer files have no anchors
    sizes = [cell.prod(1).sqrt().mean().item() for cell in cells]
    ratios = (cells[0][:, 1] / cells[0][:, 0]).tolist()
    return [
        f"anchors have {_join(sizes)} px at ratios {_join(ratios)} in the file, and "
        f"{_join(config.anchor_sizes_px)} at {_join(config.aspect_ratios)} here. Type: "
        f"--model.proposals.anchor-sizes-px {_join(sizes)} --model.proposals.aspect-ratios "
        f"{_join(ratios)}"
    ]


def _is_close(a: Sequence[float], b: Sequence[float]) -> bool:
    return len(a) == len(b) and all(abs(x - y) < 1e-3 for x, y in zip(a, b, strict=True))


def _join(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)
