"""DeepLabV3+ (Chen et al. 2018): atrous spatial pyramid pooling, the decoder, and the plain head.

As in the authors' earlier DeepLabV3+ (DecoupleSegNets): the pyramid's branches are concatenated and
projected without a norm, the decoder reduces the first stage to 48 channels without one, and two
3 x 3 convolutions follow. Ours differs in three ways:

  - The pooled branch of the pyramid has a bias instead of a norm, as in detectron2: it has one
    value per image, so the batch norm of a single image on a device would have no variance. Its
    mean excludes padding, so it does not depend on the rest of the batch.
  - Layers without a norm have a bias.
  - Everything is resampled edge to edge (align_corners=False). Cell i of the backbone is centered
    on pixel stride * i, so maps are shifted by a constant (stride - 1) / 2 pixels, which the
    decoder learns to undo. With aligned corners, as in the authors' code, the shift grows from 0 at
    the left to stride - 1 at the right, at a rate that depends on the image size: a decoder trained
    on crops of 832 pixels would be wrong on frames of 2048.

N images, C channels of the pyramid, Cl channels of the first stage, K classes, H, W padded
image size, s output stride
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn

from bsm.backbone import make_inside_mask
from bsm.configs.semantic import DeepLabConfig
from bsm.semantic.backbone import LOW_STRIDE
from bsm.semantic.field import SemanticTargets
from bsm.semantic.losses import label_loss


class Features(NamedTuple):
    """The input of every head."""

    low: Float[Tensor, "N Cl h w"]
    """Of the first stage, at a stride of 4."""
    context: Float[Tensor, "N C m n"]
    """Of the pyramid, at the output stride."""
    image_sizes_hw: Integer[Tensor, "N 2"]
    """Without padding."""


class AtrousPyramid(nn.Module):
    """Convolve a feature at several dilations in parallel, and project the results.

    Args:
        in_channels: of the feature.
        channels: of each branch and of the output.
        rates: dilations of the 3 x 3 branches.
        stride: pixels to a cell of the feature.
    """

    def __init__(
        self, in_channels: int, channels: int, *, rates: Sequence[int], stride: int
    ) -> None:
        super().__init__()
        self.stride = stride
        self.branches = nn.ModuleList(
            [
                build_conv_norm_relu(in_channels, channels, 1),
                *(build_conv_norm_relu(in_channels, channels, 3, dilation=rate) for rate in rates),
            ]
        )
        self.pooled = _build_conv(in_channels, channels)
        self.project = _build_conv((len(self.branches) + 1) * channels, channels)

    def forward(
        self, x: Float[Tensor, "N Ci m n"], image_sizes_hw: Integer[Tensor, "N 2"]
    ) -> Float[Tensor, "N C m n"]:
        """Add context to each cell."""
        inside = make_inside_mask(image_sizes_hw, (x.shape[-2], x.shape[-1]), stride=self.stride)
        cells = inside.sum((1, 2)).clamp(min=1)
        total = (x.float() * inside[:, None]).sum((2, 3), keepdim=True)
        mean = (total / cells[:, None, None, None]).to(x.dtype)
        pooled = F.relu(self.pooled(mean)).expand(-1, -1, *x.shape[-2:])
        branches = [branch(x) for branch in self.branches]
        projected: Tensor = self.project(torch.cat([*branches, pooled], dim=1))
        return projected


class Decoder(nn.Module):
    """Refine the outlines of the pyramid's context with the first stage's feature."""

    def __init__(self, low_channels: int, *, config: DeepLabConfig) -> None:
        super().__init__()
        width, low_width = config.head.channels, config.head.low_level_channels
        self.low = _build_conv(low_channels, low_width)
        self.fuse = nn.Sequential(
            build_conv_norm_relu(low_width + width, width, 3), build_conv_norm_relu(width, width, 3)
        )
        self.logits = build_classifier(width, config.num_classes)

    def forward(
        self, low: Float[Tensor, "N Cl h w"], context: Float[Tensor, "N C m n"]
    ) -> Float[Tensor, "N K h w"]:
        """Predict the logits of every class at a stride of 4."""
        up = resize(context, (low.shape[-2], low.shape[-1]))
        logits: Tensor = self.logits(self.fuse(torch.cat([self.low(low), up], dim=1)))
        return logits


class PlainHead(nn.Module):
    """DeepLabV3+'s own head: only the decoder."""

    def __init__(self, low_channels: int, *, config: DeepLabConfig) -> None:
        super().__init__()
        self.config = config.head
        self.decoder = Decoder(low_channels, config=config)

    def losses(self, features: Features, targets: SemanticTargets) -> dict[str, Tensor]:
        """Compute the cross-entropy of the label map: loss_segmentation."""
        logits = upsample_to_image(self.predict(features), features, like=targets.label)
        loss = label_loss(logits, targets.label, config=self.config.cross_entropy)
        return {"loss_segmentation": loss * self.config.loss_weights.segmentation}

    def predict(self, features: Features) -> Float[Tensor, "N K h w"]:
        """Predict the logits of every class at a stride of 4."""
        logits: Tensor = self.decoder(features.low, features.context)
        return logits


def upsample_to_image(
    logits: Float[Tensor, "N K h w"], features: Features, *, like: Tensor
) -> Float[Tensor, "N K H W"]:
    """Upsample logits to pixels, in float32, and crop the padding that `like` does not have."""
    height, width = like.shape[-2:]
    padded_hw = (LOW_STRIDE * features.low.shape[-2], LOW_STRIDE * features.low.shape[-1])
    return resize(logits.float(), padded_hw)[..., :height, :width]


def resize(x: Float[Tensor, "N C h w"], size_hw: tuple[int, int]) -> Float[Tensor, "N C H W"]:
    """Resize a map to another number of cells over the same pixels."""
    if (x.shape[-2], x.shape[-1]) == size_hw:
        return x
    return F.interpolate(x, size=size_hw, mode="bilinear", align_corners=False)


def build_conv_norm_relu(
    in_channels: int, channels: int, side: int, *, dilation: int = 1
) -> nn.Module:
    """Build a convolution that keeps the size, a batch norm and a ReLU."""
    conv = nn.Conv2d(
        in_channels, channels, side, padding=dilation * (side // 2), dilation=dilation, bias=False
    )
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())


def build_classifier(channels: int, num_classes: int) -> nn.Conv2d:
    """Build a 1 x 1 convolution to logits of a label map that start with a deviation of one.

    With logits near zero, as masks start, all classes look alike, and some never separate in a
    short training.
    """
    conv = _build_conv(channels, num_classes)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
    return conv


def _build_conv(in_channels: int, channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, channels, 1)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv
