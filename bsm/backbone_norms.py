"""The norms of a backbone: converted to another kind, frozen, or applied in place."""

import copy
import itertools
import math
from typing import Any

from timm.layers.norm_act import (
    BatchNormAct2d,
    FrozenBatchNormAct2d,
    GroupNormAct,
    convert_sync_batchnorm,
    freeze_batch_norm_2d,
)
from timm.models._efficientnet_blocks import ConvBnAct, DepthwiseSeparableConv, InvertedResidual
from timm.models.efficientnet import EfficientNetFeatures
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import FrozenBatchNorm2d

_GROUPS = 32
"""GroupNorm's usual number of groups; fewer where it does not divide the channels."""


def convert_norm(module: nn.Module, *, norm: str) -> nn.Module:
    """Convert batch norms to another norm, with the same parameter names and values."""
    match norm:
        case "frozen":
            converted: nn.Module = freeze_batch_norm_2d(module)  # type: ignore[no-untyped-call]
        case "sync":
            converted = convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        case "group":
            converted = _convert_to_group_norm(module)
        case _:
            converted = module
    return converted


def _convert_to_group_norm(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            channels = child.num_features
            groups = math.gcd(channels, _GROUPS)
            group_norm: nn.Module
            if isinstance(child, BatchNormAct2d):
                group_norm = GroupNormAct(channels, num_groups=groups)
                group_norm.drop, group_norm.act = child.drop, child.act
            else:
                group_norm = nn.GroupNorm(groups, channels)
            if child.affine:
                # Zero-initialized last norms of residual branches must stay zero.
                group_norm.load_state_dict({"weight": child.weight.data, "bias": child.bias.data})
            setattr(module, name, group_norm)
        else:
            _convert_to_group_norm(child)
    return module


def freeze_norms(module: nn.Module) -> None:
    """Freeze the statistics of batch norms whose parameters are frozen."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d | nn.SyncBatchNorm):
            if child.affine and not child.weight.requires_grad:
                setattr(module, name, freeze_batch_norm_2d(child))  # type: ignore[no-untyped-call]
        else:
            freeze_norms(child)


class InPlaceFrozenNorm(FrozenBatchNorm2d):  # type: ignore[misc]
    """A frozen batch norm that overwrites its input: equal to the last bit, and two copies less.

    Only for the output of a convolution that nothing else reads; its gradient does not need it.
    """

    inplace = True
    """timm recomputes no module alone that overwrites its input."""

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift the channels of features (N, C, H, W)."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        bias = self.bias - self.running_mean * scale
        scale, bias = scale[:, None, None], bias[:, None, None]
        if x.dtype != scale.dtype:  # under autocast the result has the norm's precision
            shifted: Tensor = x * scale + bias
            return shifted
        out: Tensor = x.mul_(scale).add_(bias)
        return out


def apply_norms_in_place(backbone: nn.Module) -> None:
    """Let the frozen norms of a ResNet overwrite their inputs: each follows a convolution."""
    for module in backbone.modules():
        if isinstance(module, Bottleneck | BasicBlock):
            for name in ("bn1", "bn2", "bn3"):
                _replace_norm(module, name)
            if isinstance(module.downsample, nn.Sequential):
                _replace_norm(module.downsample, str(len(module.downsample) - 1))
    if isinstance(getattr(backbone, "conv1", None), nn.Conv2d):
        _replace_norm(backbone, "bn1")


_FROZEN = (FrozenBatchNorm2d, FrozenBatchNormAct2d)
_IN_ORDER = (
    *(nn.Sequential, Bottleneck, BasicBlock),
    *(EfficientNetFeatures, ConvBnAct, DepthwiseSeparableConv, InvertedResidual),
)
"""Modules in which a norm right after a convolution reads its output, and nothing else does."""


def fold_norms(backbone: nn.Module) -> nn.Module:
    """Return a copy for inference whose convolutions do what the frozen norms after them did.

    Other norms, and frozen ones elsewhere, stay. A backbone without frozen norms is returned as it
    is.
    """
    if not any(isinstance(module, _FROZEN) for module in backbone.modules()):
        return backbone
    folded = copy.deepcopy(backbone)
    for module in folded.modules():
        if type(module) not in _IN_ORDER:
            continue
        children = list(module.named_children())
        for (_, conv), (name, norm) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, _FROZEN):
                _fold(conv, norm)
                setattr(module, name, getattr(norm, "act", nn.Identity()))
    return folded


def _fold(conv: nn.Conv2d, norm: Any) -> None:  # noqa: ANN401  two classes without a base
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight,
        conv.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )


def _replace_norm(parent: nn.Module, name: str) -> None:
    norm: Any = getattr(parent, name, None)
    # Not a subclass: timm's includes the activation.
    if type(norm) is FrozenBatchNorm2d:
        replaced = InPlaceFrozenNorm(len(norm.weight), norm.eps)
        replaced.load_state_dict(norm.state_dict())
        setattr(parent, name, replaced)
