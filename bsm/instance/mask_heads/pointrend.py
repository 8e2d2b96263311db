"""PointRend's mask head (Kirillov et al. 2020): a coarse mask, refined point by point.

R RoIs, D channels of the pyramid, K categories, P points, c side of the coarse mask
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from bsm.configs.instance import MaskHeadConfig, MaskRCNNConfig
from bsm.instance.convolutions import build_conv_relu, init_relu
from bsm.instance.mask_heads.layers import predict_category_logits
from bsm.instance.roi import read_points
from bsm.instance.roi_targets import (
    MaskRois,
    make_grid_targets,
    make_point_targets,
    to_image_pixels,
)
from bsm.instance.tensors import Targets
from bsm.losses import bce_loss
from bsm.points import (
    draw_training_points,
    find_uncertain_cells,
    make_cell_centers,
    replace_cells,
    sample_points,
)


class CoarseMaskHead(nn.Module):
    """Predict a coarse mask for every category with two fully connected layers."""

    def __init__(self, in_channels: int, *, num_classes: int, config: MaskHeadConfig) -> None:
        super().__init__()
        self.side, hidden = config.pointrend.coarse_side, config.pointrend.coarse_hidden
        self.num_classes = num_classes
        reduced = config.roi_side // 2
        self.reduce = build_conv_relu(in_channels, config.channels, 2, stride=2)
        self.fc1 = nn.Linear(config.channels * reduced**2, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.mask = nn.Linear(hidden, num_classes * self.side**2)
        for layer in (self.fc1, self.fc2):
            nn.init.kaiming_uniform_(layer.weight, a=1)  # detectron2: c2_xavier_fill
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.mask.weight, std=0.001)
        nn.init.zeros_(self.mask.bias)

    def forward(self, features: Float[Tensor, "R D m m"]) -> Float[Tensor, "R K c c"]:
        """Predict the coarse mask logits of every category."""
        hidden = F.relu(self.fc1(self.reduce(features).flatten(1)))
        logits: Tensor = self.mask(F.relu(self.fc2(hidden)))
        return logits.view(-1, self.num_classes, self.side, self.side)


class PointHead(nn.Module):
    """A few layers on the fine feature of a point; each takes the coarse prediction too."""

    def __init__(self, in_channels: int, *, num_classes: int, config: MaskHeadConfig) -> None:
        super().__init__()
        width = in_channels + num_classes
        self.layers = nn.ModuleList()
        for _ in range(config.pointrend.num_layers):
            self.layers.append(nn.Conv1d(width, config.channels, 1))
            width = config.channels + num_classes
        self.logits = nn.Conv1d(width, num_classes, 1)
        for layer in self.layers:
            init_relu(layer)  # type: ignore[arg-type]
        nn.init.normal_(self.logits.weight, std=0.001)
        nn.init.zeros_(self.logits.bias)  # type: ignore[arg-type]

    def forward(
        self,
        fine: Float[Tensor, "R D P"],
        coarse: Float[Tensor, "R K P"],
        category_index: Int64[Tensor, " R"],
    ) -> Float[Tensor, "R P"]:
        """Predict the logits of each point for the RoI's category."""
        x = torch.cat([fine, coarse.to(fine.dtype)], dim=1)
        for layer in self.layers:
            hidden = F.relu(layer(x))
            x = torch.cat([hidden, coarse.to(hidden.dtype)], dim=1)
        return predict_category_logits(self.logits, x, category_index)


class PointRendMaskHead(nn.Module):
    """Predict a coarse mask, then refine its uncertain points from P2.

    In training the most uncertain points have a loss of their own. In inference a mask of 28 x 28
    is doubled three times, and after each doubling its 784 most uncertain cells are predicted
    again: 224 x 224 from 3,136 predictions.
    """

    def __init__(self, config: MaskRCNNConfig) -> None:
        super().__init__()
        self.config, channels = config.mask_head, config.backbone.fpn_channels
        self.coarse = CoarseMaskHead(
            channels, num_classes=config.num_classes, config=config.mask_head
        )
        self.point = PointHead(channels, num_classes=config.num_classes, config=config.mask_head)

    def losses(
        self, pyramid: Sequence[Tensor], rois: MaskRois, targets: Targets
    ) -> dict[str, Tensor]:
        """Compute the cross-entropy of the coarse mask (loss_mask) and points (loss_mask_point)."""
        config, point_config = self.config, self.config.pointrend
        coarse = self._predict_coarse(pyramid, rois.rois)
        own_logits = _select_category(coarse, rois.category_index)
        wanted = make_grid_targets(
            rois, targets, config=config.targets, side=point_config.coarse_side
        )
        sample_seed = targets.sample_seed[rois.image_index]
        points = draw_training_points(
            sample_seed,
            rois.identity,
            lambda at: -sample_points(own_logits[:, None].float(), at)[:, 0].abs(),
            num_points=point_config.num_points,
            oversample=point_config.oversample,
            importance=point_config.importance,
        )
        point_logits = self._predict_points(pyramid, rois.rois, coarse, points, rois.category_index)
        point_wanted = make_point_targets(rois, targets, points, config=config.targets)
        weight = config.loss_weights.mask
        return {
            "loss_mask": weight * bce_loss(own_logits, wanted.mask, weights=rois.weights),
            "loss_mask_point": weight
            * bce_loss(point_logits[:, None], point_wanted[:, None], weights=rois.weights),
        }

    def predict(self, pyramid: Sequence[Tensor], rois: Tensor, category_index: Tensor) -> Tensor:
        """Predict mask logits (R, M, M) of RoIs (R, 5) for their categories (R,); M is 224."""
        config = self.config.pointrend
        coarse = self._predict_coarse(pyramid, rois)
        start = (config.start_side, config.start_side)
        every = make_cell_centers(start, device=rois.device).expand(len(rois), -1, -1)
        logits = self._predict_points(pyramid, rois, coarse, every, category_index)
        masks = logits.view(-1, 1, *start)
        for _ in range(config.subdivisions):
            masks = F.interpolate(masks, scale_factor=2.0, mode="bilinear", align_corners=False)
            index, points = find_uncertain_cells(
                -masks[:, 0].abs(), num_points=config.subdivision_points
            )
            refined = self._predict_points(pyramid, rois, coarse, points, category_index)
            masks = replace_cells(masks, index, refined[:, None])
        return masks[:, 0]

    def _predict_coarse(self, pyramid: Sequence[Tensor], rois: Tensor) -> Tensor:
        side = self.config.roi_side
        centers = make_cell_centers((side, side), device=rois.device).expand(len(rois), -1, -1)
        features = _read_finest(pyramid, rois, centers)
        coarse: Tensor = self.coarse(features.reshape(*features.shape[:2], side, side))
        return coarse

    def _predict_points(
        self,
        pyramid: Sequence[Tensor],
        rois: Tensor,
        coarse: Tensor,
        points: Tensor,
        category_index: Tensor,
    ) -> Tensor:
        fine = _read_finest(pyramid, rois, points)
        logits: Tensor = self.point(fine, sample_points(coarse, points), category_index)
        return logits


def _read_finest(pyramid: Sequence[Tensor], rois: Tensor, points: Tensor) -> Tensor:
    return read_points(pyramid[0], rois[:, 0].long(), to_image_pixels(rois[:, 1:], points))


def _select_category(coarse: Tensor, category_index: Tensor) -> Tensor:
    index = category_index[:, None, None, None].expand(-1, 1, *coarse.shape[-2:])
    return coarse.gather(1, index)[:, 0]
