"""DeepLabV3+ (Chen et al. 2018): atrous spatial pyramid pooling, a decoder, and its own head.

As in the authors' earlier DeepLabV3+ (DecoupleSegNets): the pyramid's branches are concatenated and
projected without a norm, the decoder takes 48 channels of the first stage without one, and two
3 x 3 convolutions follow. Ours differs in three things:

  - The pooled branch of the pyramid has a bias in place of a norm, as in detectron2: it holds one
    value an image, and a batch norm of one image on one device has nothing to divide by. Its mean
    leaves padding out, so it is the image's whatever else is in the batch.
  - Layers that no norm follows have a bias.
  - Everything is resampled edge to edge (align_corners=False). The trunk's cell i looks at pixels
    around stride * i, so maps come out shifted by a constant (stride - 1) / 2 pixels, which the
    decoder learns to take back. With corners aligned, as the authors have it, that shift grows from
    0 at the left to stride - 1 at the right, at a pace that hangs on the image's size: what is
    learned on crops of 832 pixels would not hold on frames of 2048.

    N images, C channels of the pyramid, Cl channels of the first stage, K classes, H, W padded
    image size, s output stride
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn

from bsm.backbone import inside_images
from bsm.configs.semantic import DeepLabConfig
from bsm.semantic.backbone import LOW_STRIDE
from bsm.semantic.field import SemanticTargets
from bsm.semantic.losses import label_loss


class Features(NamedTuple):
    """What every head starts from."""

    low: Float[Tensor, "N Cl h w"]
    """Of the first stage, at a stride of 4."""
    context: Float[Tensor, "N C m n"]
    """Of the pyramid, at the output stride."""
    image_sizes_hw: Integer[Tensor, "N 2"]
    """Sizes without padding."""


class AtrousPyramid(nn.Module):
    """Look at a feature through windows of several sizes at once, and project what they see.

    Args:
        in_channels: of the feature.
        channels: of each branch and of the result.
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
                conv_norm_relu(in_channels, channels, 1),
                *(conv_norm_relu(in_channels, channels, 3, dilation=rate) for rate in rates),
            ]
        )
        self.pooled = _conv(in_channels, channels)
        self.project = _conv((len(self.branches) + 1) * channels, channels)

    def forward(
        self, x: Float[Tensor, "N Ci m n"], image_sizes_hw: Integer[Tensor, "N 2"]
    ) -> Float[Tensor, "N C m n"]:
        """Give each cell what is around it."""
        inside = inside_images(image_sizes_hw, (x.shape[-2], x.shape[-1]), stride=self.stride)
        cells = inside.sum((1, 2)).clamp(min=1)
        total = (x.float() * inside[:, None]).sum((2, 3), keepdim=True)
        mean = (total / cells[:, None, None, None]).to(x.dtype)
        pooled = F.relu(self.pooled(mean)).expand(-1, -1, *x.shape[-2:])
        seen = [branch(x) for branch in self.branches]
        projected: Tensor = self.project(torch.cat([*seen, pooled], dim=1))
        return projected


class Decoder(nn.Module):
    """Draw the outlines of the first stage's feature into what the pyramid saw."""

    def __init__(self, low_channels: int, *, config: DeepLabConfig) -> None:
        super().__init__()
        width, low_width = config.head.channels, config.head.low_level_channels
        self.low = _conv(low_channels, low_width)
        self.fuse = nn.Sequential(
            conv_norm_relu(low_width + width, width, 3), conv_norm_relu(width, width, 3)
        )
        self.logits = classifier(width, config.num_classes)

    def forward(
        self, low: Float[Tensor, "N Cl h w"], context: Float[Tensor, "N C m n"]
    ) -> Float[Tensor, "N K h w"]:
        """Logits of every class at a stride of 4."""
        up = resize(context, (low.shape[-2], low.shape[-1]))
        logits: Tensor = self.logits(self.fuse(torch.cat([self.low(low), up], dim=1)))
        return logits


class PlainHead(nn.Module):
    """DeepLabV3+'s own: the decoder, and nothing else."""

    def __init__(self, low_channels: int, *, config: DeepLabConfig) -> None:
        super().__init__()
        self.config = config.head
        self.decoder = Decoder(low_channels, config=config)

    def losses(self, features: Features, targets: SemanticTargets) -> dict[str, Tensor]:
        """Cross-entropy of the label map: loss_segmentation."""
        logits = full_size(self.predict(features), features, like=targets.label)
        loss = label_loss(logits, targets.label, config=self.config.cross_entropy)
        return {"loss_segmentation": loss * self.config.loss_weights.segmentation}

    def predict(self, features: Features) -> Float[Tensor, "N K h w"]:
        """Logits of every class at a stride of 4."""
        logits: Tensor = self.decoder(features.low, features.context)
        return logits


def full_size(
    logits: Float[Tensor, "N K h w"], features: Features, *, like: Tensor
) -> Float[Tensor, "N K H W"]:
    """Bring logits of a padded map to its pixels, in float32, and cut off what `like` has not."""
    height, width = like.shape[-2:]
    padded_hw = (LOW_STRIDE * features.low.shape[-2], LOW_STRIDE * features.low.shape[-1])
    return resize(logits.float(), padded_hw)[..., :height, :width]


def resize(x: Float[Tensor, "N C h w"], size_hw: tuple[int, int]) -> Float[Tensor, "N C H W"]:
    """Resample a map to another number of cells over the same pixels."""
    if (x.shape[-2], x.shape[-1]) == size_hw:
        return x
    return F.interpolate(x, size=size_hw, mode="bilinear", align_corners=False)


def conv_norm_relu(in_channels: int, channels: int, side: int, *, dilation: int = 1) -> nn.Module:
    """A convolution that keeps the size, batch norm, ReLU."""
    conv = nn.Conv2d(
        in_channels, channels, side, padding=dilation * (side // 2), dilation=dilation, bias=False
    )
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())


def classifier(channels: int, num_classes: int) -> nn.Conv2d:
    """A 1 x 1 convolution to the logits of a label map, which start with a deviation of one.

    From a start near zero, as masks have it, all classes are alike, and in a short training some of
    them stay so.
    """
    conv = _conv(channels, num_classes)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
    return conv


def _conv(in_channels: int, channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, channels, 1)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv
