"""Layers that the mask heads share.

R RoIs, C channels, K categories, m side of the pooled RoI, M = 2 m side of a mask, P cells
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from bsm.configs.instance import MaskRCNNConfig
from bsm.instance.convolutions import build_conv_relu, init_relu


class MaskPredictor(nn.Module):
    """A deconvolution that doubles the side, and one map of logits for each category.

    It computes only the map of the requested category: no other has a loss or leaves the model, and
    with 80 categories the others would take most of the memory of the mask loss.
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
        """Predict the mask logits of each RoI for its category."""
        hidden = F.relu(self.deconv(features))
        logits = predict_category_logits(self.logits, hidden.flatten(2), category_index)
        return logits.view(-1, *hidden.shape[-2:])


def predict_category_logits(
    layer: nn.Conv1d | nn.Conv2d,
    features: Float[Tensor, "R C P"],
    category_index: Int64[Tensor, " R"],
) -> Float[Tensor, "R P"]:
    """Apply a 1x1 convolution to K categories, computing only each RoI's category."""
    # embedding, not indexing: its gradient is summed in a fixed order on every device.
    weight = F.embedding(category_index, layer.weight.flatten(1))
    bias = F.embedding(category_index, layer.bias[:, None])  # type: ignore[index]
    return torch.baddbmm(bias[:, None], weight[:, None].to(features.dtype), features)[:, 0]


def build_conv_tower(config: MaskRCNNConfig) -> tuple[nn.Sequential, int]:
    """Build the 3x3 convolutions with ReLUs that mask heads start with; return their width too."""
    width, head = config.backbone.fpn_channels, config.mask_head
    layers: list[nn.Module] = []
    for _ in range(head.num_convs):
        layers += build_conv_relu(width, head.channels, 3, norm=config.head_norm)
        width = head.channels
    return nn.Sequential(*layers), width
