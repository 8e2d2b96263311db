"""PointRend (Kirillov et al. 2020) on DeepLabV3+: a coarse label map, refined point by point.

The coarse map is the decoder's, at a stride of 4; the fine feature is the first stage's. Unlike on
RoIs, only the first layer of the point network takes the coarse prediction (detectron2).

N images, Cl channels of the first stage, K classes, P points, h, w size at a stride of 4
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bsm.backbone import make_inside_mask
from bsm.configs.semantic import CrossEntropyConfig, DeepLabConfig
from bsm.points import (
    draw_training_points,
    find_uncertain_cells,
    replace_cells,
    sample_nearest,
    sample_points,
)
from bsm.semantic.backbone import LOW_STRIDE
from bsm.semantic.decoder import Decoder, Features, resize, upsample_to_image
from bsm.semantic.field import VOID, SemanticTargets
from bsm.semantic.losses import label_loss

_AT_POINTS = CrossEntropyConfig()


class PointNetwork(nn.Module):
    """A few layers applied to each point on its own."""

    def __init__(self, low_channels: int, *, config: DeepLabConfig) -> None:
        super().__init__()
        channels, num_classes = config.head.pointrend.channels, config.num_classes
        layers: list[nn.Module] = []
        width = low_channels + num_classes
        for _ in range(config.head.pointrend.num_layers):
            layer = nn.Conv1d(width, channels, 1)
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
            layers += [layer, nn.ReLU()]
            width = channels
        self.layers = nn.Sequential(*layers)
        self.logits = nn.Conv1d(width, num_classes, 1)
        nn.init.normal_(self.logits.weight, std=0.001)
        nn.init.zeros_(self.logits.bias)  # type: ignore[arg-type]

    def forward(
        self, fine: Float[Tensor, "N Cl P"], coarse: Float[Tensor, "N K P"]
    ) -> Float[Tensor, "N K P"]:
        """Predict the logits of every class at each point."""
        logits: Tensor = self.logits(self.layers(torch.cat([fine, coarse.to(fine.dtype)], dim=1)))
        return logits


class PointRendHead(nn.Module):
    """Train the most uncertain points; in inference, double the map twice and refine them."""

    def __init__(self, low_channels: int, *, config: DeepLabConfig) -> None:
        super().__init__()
        self.config = config.head
        self.decoder = Decoder(low_channels, config=config)
        self.point = PointNetwork(low_channels, config=config)

    def losses(self, features: Features, targets: SemanticTargets) -> dict[str, Tensor]:
        """Compute the cross-entropy of map and points: loss_segmentation, loss_point."""
        config = self.config
        coarse: Tensor = self.decoder(features.low, features.context)
        points = draw_training_points(
            targets.sample_seed,
            torch.zeros_like(targets.sample_seed),
            lambda at: compute_uncertainty(sample_points(coarse.float(), at)),
            num_points=config.pointrend.num_points,
            oversample=config.pointrend.oversample,
            importance=config.pointrend.importance,
        )
        label = targets.label
        whole = upsample_to_image(coarse, features, like=label)
        # Points are relative to the padded map.
        beyond = [LOW_STRIDE * coarse.shape[dim] - label.shape[dim] for dim in (-1, -2)]
        padded = F.pad(label, (0, beyond[0], 0, beyond[1]), value=VOID)
        at_points = self._predict(features, coarse, points).float()
        losses = {
            "loss_segmentation": label_loss(whole, label, config=config.cross_entropy),
            "loss_point": label_loss(at_points, sample_nearest(padded, points), config=_AT_POINTS),
        }
        return {name: loss * config.loss_weights.segmentation for name, loss in losses.items()}

    def predict(self, features: Features) -> Float[Tensor, "N K H W"]:
        """Predict the logits of every class at a stride of 4, doubled `subdivisions` times."""
        config = self.config.pointrend
        coarse: Tensor = self.decoder(features.low, features.context)
        logits, stride = coarse.float(), LOW_STRIDE
        for _ in range(config.subdivisions):
            stride //= 2
            size_hw = (2 * logits.shape[-2], 2 * logits.shape[-1])
            logits = resize(logits, size_hw)
            # Cells beyond an image must not take points from cells in it.
            inside = make_inside_mask(features.image_sizes_hw, size_hw, stride=stride)
            uncertainty = torch.where(inside, compute_uncertainty(logits), -torch.inf)
            index, points = find_uncertain_cells(uncertainty, num_points=config.subdivision_points)
            logits = replace_cells(logits, index, self._predict(features, coarse, points))
        return logits

    def _predict(self, features: Features, coarse: Tensor, points: Tensor) -> Tensor:
        fine, coarse = sample_points(features.low, points), sample_points(coarse, points)
        logits: Tensor = self.point(fine, coarse)
        return logits


def compute_uncertainty(logits: Float[Tensor, " N K *map"]) -> Float[Tensor, " N *map"]:
    """Subtract the best class's logit from the second best's; 0 is the most uncertain."""
    first, second = logits.topk(2, dim=1).values.unbind(1)
    return second - first
