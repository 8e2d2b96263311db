"""Mask R-CNN's own mask head, and the parts that every mask head is made of.

R RoIs, C channels, K categories, m side of the pooled RoI, M = 2 m side of a mask
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from bsm.configs.instance import BoxConvention, MaskHeadConfig
from bsm.instance.roi import pool_rois
from bsm.instance.roi_targets import MaskRois, grid_targets
from bsm.instance.tensors import Targets
from bsm.losses import bce_loss


class MaskPredictor(nn.Module):
    """A deconvolution that doubles the side, and one map of logits for each category.

    Only the map of the category that was asked for is computed: it is the only one that carries
    loss or leaves the model, and with 80 categories the others are most of the memory of the mask
    loss.
    """

    def __init__(self, channels: int, *, num_classes: int) -> None:
        super().__init__()
        self.deconv = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.logits = nn.Conv2d(channels, num_classes, 1)
        init_relu(self.deconv)
        nn.init.normal_(self.logits.weight, std=0.001)  # detectron2 MaskRCNNConvUpsampleHead
        nn.init.zeros_(self.logits.bias)  # type: ignore[arg-type]

    def forward(
        self, features: Float[Tensor, "R C m m"], category_index: Int64[Tensor, " R"]
    ) -> Float[Tensor, "R M M"]:
        """Logits of each RoI's mask for its category."""
        hidden = F.relu(self.deconv(features))
        drawn = logits_of_category(self.logits, hidden.flatten(2), category_index)
        return drawn.view(-1, *hidden.shape[-2:])


class PlainMaskHead(nn.Module):
    """A few 3x3 convolutions and a predictor (detectron2's MaskRCNNConvUpsampleHead)."""

    def __init__(
        self,
        in_channels: int,
        *,
        num_classes: int,
        config: MaskHeadConfig,
        box_convention: BoxConvention = "detectron2",
    ) -> None:
        super().__init__()
        self.config, self.box_convention = config, box_convention
        self.convs = conv_tower(in_channels, config=config)
        self.mask = MaskPredictor(tower_width(in_channels, config=config), num_classes=num_classes)

    def forward(
        self, features: Float[Tensor, "R C m m"], category_index: Int64[Tensor, " R"]
    ) -> Float[Tensor, "R M M"]:
        """Mask logits of each pooled RoI for its category."""
        logits: Tensor = self.mask(self.convs(features), category_index)
        return logits

    def losses(
        self, pyramid: Sequence[Tensor], rois: MaskRois, targets: Targets
    ) -> dict[str, Tensor]:
        """Cross-entropy of the masks: loss_mask."""
        config = self.config
        wanted = grid_targets(rois, targets, config=config.targets, side=2 * config.roi_side)
        logits = self.predict(pyramid, rois.rois, rois.category_index)
        loss = bce_loss(logits, wanted.mask, weights=rois.weights)
        return {"loss_mask": loss * config.loss_weights.mask}

    def predict(self, pyramid: Sequence[Tensor], rois: Tensor, category_index: Tensor) -> Tensor:
        """Mask logits (R, M, M) of RoIs (R, 5) for their categories (R,)."""
        side = self.config.roi_side
        pooled = pool_rois(pyramid, rois, side=side, box_convention=self.box_convention)
        logits: Tensor = self(pooled, category_index)
        return logits


def logits_of_category(
    layer: nn.Conv1d | nn.Conv2d,
    features: Float[Tensor, "R C P"],
    category_index: Int64[Tensor, " R"],
) -> Float[Tensor, "R P"]:
    """Apply of a 1x1 convolution to K categories the one map that each RoI asks for."""
    # embedding, not indexing: its gradient is summed in a fixed order on every device.
    weight = F.embedding(category_index, layer.weight.flatten(1))
    bias = F.embedding(category_index, layer.bias[:, None])  # type: ignore[index]
    return torch.baddbmm(bias[:, None], weight[:, None].to(features.dtype), features)[:, 0]


def conv_tower(in_channels: int, *, config: MaskHeadConfig) -> nn.Sequential:
    """The 3x3 convolutions, each with a ReLU, that mask heads begin with."""
    layers: list[nn.Module] = []
    for i in range(config.num_convs):
        conv = nn.Conv2d(in_channels if i == 0 else config.channels, config.channels, 3, padding=1)
        init_relu(conv)
        layers += [conv, nn.ReLU()]
    return nn.Sequential(*layers)


def tower_width(in_channels: int, *, config: MaskHeadConfig) -> int:
    """Channels that leave `conv_tower`."""
    return config.channels if config.num_convs else in_channels


def conv_relu(in_channels: int, channels: int, side: int, *, stride: int = 1) -> nn.Sequential:
    """A convolution that keeps the size but for its stride, with a bias, and a ReLU."""
    padding = side // 2 if side % 2 else 0
    conv = nn.Conv2d(in_channels, channels, side, stride=stride, padding=padding)
    init_relu(conv)
    return nn.Sequential(conv, nn.ReLU())


def init_relu(layer: nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d) -> None:
    """Initialize a layer that a ReLU follows (detectron2: c2_msra_fill)."""
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
