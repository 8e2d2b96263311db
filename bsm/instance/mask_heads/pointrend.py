"""PointRend (Kirillov et al. 2020): a coarse mask, and a small network that redraws points of it.

R RoIs, D channels of the pyramid, K categories, P points, c side of the coarse mask
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from bsm.configs.instance import BoxConvention, MaskHeadConfig
from bsm.instance.mask_heads.plain import conv_relu, init_relu, logits_of_category
from bsm.instance.roi import pool_cell_centers, read_points
from bsm.instance.roi_targets import MaskRois, grid_targets, point_targets, points_in_image
from bsm.instance.tensors import Targets
from bsm.losses import bce_loss
from bsm.points import (
    cell_centers,
    least_sure_cells,
    replace_cells,
    sample_at,
    training_points,
)


class CoarseMaskHead(nn.Module):
    """A mask of few cells for every category, from two fully connected layers."""

    def __init__(self, in_channels: int, *, num_classes: int, config: MaskHeadConfig) -> None:
        super().__init__()
        self.side, hidden = config.pointrend.coarse_side, config.pointrend.coarse_hidden
        self.num_classes = num_classes
        reduced = config.roi_side // 2
        self.reduce = conv_relu(in_channels, config.channels, 2, stride=2)
        self.fc1 = nn.Linear(config.channels * reduced**2, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.mask = nn.Linear(hidden, num_classes * self.side**2)
        for layer in (self.fc1, self.fc2):
            nn.init.kaiming_uniform_(layer.weight, a=1)  # detectron2: c2_xavier_fill
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.mask.weight, std=0.001)
        nn.init.zeros_(self.mask.bias)

    def forward(self, features: Float[Tensor, "R D m m"]) -> Float[Tensor, "R K c c"]:
        """Coarse mask logits for every category."""
        hidden = F.relu(self.fc1(self.reduce(features).flatten(1)))
        logits: Tensor = self.mask(F.relu(self.fc2(hidden)))
        return logits.view(-1, self.num_classes, self.side, self.side)


class PointHead(nn.Module):
    """A few layers on the fine feature of a point, each told the coarse prediction there anew."""

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
        """Logits of each point for the RoI's category."""
        x = torch.cat([fine, coarse.to(fine.dtype)], dim=1)
        for layer in self.layers:
            hidden = F.relu(layer(x))
            x = torch.cat([hidden, coarse.to(hidden.dtype)], dim=1)
        return logits_of_category(self.logits, x, category_index)


class PointRendMaskHead(nn.Module):
    """A coarse mask, and points of it predicted anew from P2.

    In training the points that are least sure carry a loss of their own. In inference a mask is
    drawn at 28 x 28, then doubled three times, and after each doubling its 784 least sure cells are
    predicted anew: 224 x 224 from 3,136 predictions.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        num_classes: int,
        config: MaskHeadConfig,
        box_convention: BoxConvention = "detectron2",
    ) -> None:
        super().__init__()
        self.config = config
        self.coarse = CoarseMaskHead(in_channels, num_classes=num_classes, config=config)
        self.point = PointHead(in_channels, num_classes=num_classes, config=config)

    def forward(
        self, features: Float[Tensor, "R D m m"], category_index: Int64[Tensor, " R"]
    ) -> Float[Tensor, "R c c"]:
        """Coarse mask logits of each pooled RoI for its category."""
        coarse: Tensor = self.coarse(features)
        return _of_category(coarse, category_index)

    def losses(
        self, pyramid: Sequence[Tensor], rois: MaskRois, targets: Targets
    ) -> dict[str, Tensor]:
        """Cross-entropy of the coarse mask and of the points: loss_mask, loss_mask_point."""
        config, points_config = self.config, self.config.pointrend
        coarse = self._coarse(pyramid, rois.rois)
        of_category = _of_category(coarse, rois.category_index)
        wanted = grid_targets(rois, targets, config=config.targets, side=points_config.coarse_side)
        sample_seed = targets.sample_seed[rois.image_index]
        points = training_points(
            sample_seed,
            rois.identity,
            lambda at: -sample_at(of_category[:, None].float(), at)[:, 0].abs(),
            num_points=points_config.num_points,
            oversample=points_config.oversample,
            importance=points_config.importance,
        )
        point_logits = self._predict_points(pyramid, rois.rois, coarse, points, rois.category_index)
        point_wanted = point_targets(rois, targets, points, config=config.targets)
        weight = config.loss_weights.mask
        return {
            "loss_mask": weight * bce_loss(of_category, wanted.mask, weights=rois.weights),
            "loss_mask_point": weight
            * bce_loss(point_logits[:, None], point_wanted[:, None], weights=rois.weights),
        }

    def predict(self, pyramid: Sequence[Tensor], rois: Tensor, category_index: Tensor) -> Tensor:
        """Mask logits (R, M, M) of RoIs (R, 5) for their categories (R,); M is 224 by default."""
        config = self.config.pointrend
        coarse = self._coarse(pyramid, rois)
        start = (config.start_side, config.start_side)
        every = cell_centers(start, device=rois.device).expand(len(rois), -1, -1)
        logits = self._predict_points(pyramid, rois, coarse, every, category_index)
        masks = logits.view(-1, 1, *start)
        for _ in range(config.subdivisions):
            masks = F.interpolate(masks, scale_factor=2.0, mode="bilinear", align_corners=False)
            index, points = least_sure_cells(
                -masks[:, 0].abs(), num_points=config.subdivision_points
            )
            anew = self._predict_points(pyramid, rois, coarse, points, category_index)
            masks = replace_cells(masks, index, anew[:, None])
        return masks[:, 0]

    def _coarse(self, pyramid: Sequence[Tensor], rois: Tensor) -> Tensor:
        pooled = pool_cell_centers(pyramid[0], rois, side=self.config.roi_side)
        coarse: Tensor = self.coarse(pooled)
        return coarse

    def _predict_points(
        self,
        pyramid: Sequence[Tensor],
        rois: Tensor,
        coarse: Tensor,
        points: Tensor,
        category_index: Tensor,
    ) -> Tensor:
        pixels = points_in_image(rois[:, 1:], points)
        fine = read_points(pyramid[0], rois[:, 0].long(), pixels)
        logits: Tensor = self.point(fine, sample_at(coarse, points), category_index)
        return logits


def _of_category(coarse: Tensor, category_index: Tensor) -> Tensor:
    index = category_index[:, None, None, None].expand(-1, 1, *coarse.shape[-2:])
    return coarse.gather(1, index)[:, 0]
