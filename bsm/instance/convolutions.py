"""Convolutions of the heads, and norms after them."""

from typing import cast

from torch import nn

from bsm.backbone import FpnBackbone
from bsm.backbone_norms import convert_norm
from bsm.configs.instance import HeadNorm


def build_conv_relu(
    in_channels: int, channels: int, side: int, *, stride: int = 1, norm: HeadNorm = "none"
) -> nn.Sequential:
    """Build a convolution and a ReLU; only the stride changes the size.

    The convolution has a bias, or, with a norm, is itself a sequence without one.
    """
    padding = side // 2 if side % 2 else 0
    conv = nn.Conv2d(in_channels, channels, side, stride=stride, padding=padding)
    init_relu(conv)
    return nn.Sequential(conv if norm == "none" else _with_norm(conv, norm), nn.ReLU())


def init_relu(layer: nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d) -> None:
    """Initialize a layer that a ReLU follows (detectron2: c2_msra_fill)."""
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def add_pyramid_norms(backbone: FpnBackbone, norm: HeadNorm) -> None:
    """Add a norm after each convolution of the pyramid."""
    if norm == "none":
        return
    for convs in (backbone.laterals, backbone.outputs):
        for index, conv in enumerate(convs):
            convs[index] = _with_norm(cast(nn.Conv2d, conv), norm)


def _with_norm(conv: nn.Conv2d, norm: HeadNorm) -> nn.Module:
    conv.bias = None
    return convert_norm(nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels)), norm=norm)
