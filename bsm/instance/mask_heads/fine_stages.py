"""Fine stages after any dense mask head: small corrections of its logits on finer grids (ours).

A mask of 28 x 28 cells cannot follow the outline of a large object. Each stage reads P2 at its own
grid, narrowed to a few channels before pooling, and adds a correction to the logits of the object's
category. The correction is the same layer for all categories: where an outline bends is a matter of
the image. For a head with features H (14 x 14) and logits z (28 x 28), both in cells of the RoI:

    stage at 28    h = ReLU(deconv(H) + pool(narrow(P2)))      one sample per cell
                   h = two 3 x 3 convolutions of [h, sigmoid(z)]
                   z = z + conv1x1(h)
    stage at 56    the same with h instead of H and z upsampled to 56 x 56
    large objects  the same once more at 112, for the largest boxes of each image only

The loss compares the last logits, upsampled to 112 x 112, with the mask at that resolution; the
head's own losses at 28 x 28 stay. With `boundary_band` finer stages are as in RefineMask (Zhang et
al. 2021): they are trained on the cells near the true or the coarser predicted outline, and in
inference replace only the cells near the coarser outline.

R RoIs, C channels of the head, D of the pyramid, w of a stage, m side of H, M = 2 m of z, N images
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from bsm.configs.instance import BoxConvention, MaskRCNNConfig
from bsm.instance.box_ops import box_area
from bsm.instance.convolutions import build_conv_relu, init_relu
from bsm.instance.roi import pool_finest
from bsm.instance.roi_targets import MaskRois, make_mask_targets
from bsm.instance.tensors import Targets
from bsm.losses import bce_loss


class FineStage(nn.Module):
    """Correct logits on their grid, from features at half of its side and from P2."""

    def __init__(self, in_channels: int, width: int, *, config: MaskRCNNConfig) -> None:
        super().__init__()
        self.box_convention: BoxConvention = config.box_convention
        self.narrow = nn.Conv2d(config.backbone.fpn_channels, width, 1)
        self.upsample = nn.ConvTranspose2d(in_channels, width, 2, stride=2)
        self.convs = nn.Sequential(
            build_conv_relu(width + 1, width, 3), build_conv_relu(width, width, 3)
        )
        self.correction = nn.Conv2d(width, 1, 1)
        init_relu(self.narrow)
        init_relu(self.upsample)
        nn.init.normal_(self.correction.weight, std=0.001)  # start from the head's own mask
        nn.init.zeros_(self.correction.bias)  # type: ignore[arg-type]

    def forward(
        self,
        finest: Float[Tensor, "N D h w"],
        rois: Float[Tensor, "R 5"],
        features: Float[Tensor, "R C m m"],
        logits: Float[Tensor, "R 2*m 2*m"],
    ) -> tuple[Float[Tensor, "R w 2*m 2*m"], Float[Tensor, "R 2*m 2*m"]]:
        """Return the features and the logits of the stage."""
        fine = pool_finest(
            self.narrow(finest),
            rois,
            side=logits.shape[-1],
            box_convention=self.box_convention,
            samples_per_cell=1,
        )
        hidden = F.relu(self.upsample(features) + fine)
        # Detached: the head below learns from the sum of its logits and the correction.
        probs = logits.detach().sigmoid()[:, None].to(hidden.dtype)
        hidden = self.convs(torch.cat([hidden, probs], dim=1))
        return hidden, logits + self.correction(hidden)[:, 0]


class FineStages(nn.Module):
    """The stages that `mask_head.fine_stages` asks for; without any, the head stays as it is."""

    def __init__(self, config: MaskRCNNConfig, *, in_channels: int) -> None:
        super().__init__()
        self.config = config.mask_head
        options = config.mask_head.fine_stages
        self.stages = nn.ModuleList()
        for width in options.channels:
            self.stages.append(FineStage(in_channels, width, config=config))
            in_channels = width
        self.large: FineStage | None = None
        if options.large_channels:
            self.large = FineStage(in_channels, options.large_channels, config=config)

    def forward(
        self,
        pyramid: Sequence[Tensor],
        rois: Float[Tensor, "R 5"],
        features: Float[Tensor, "R C m m"],
        logits: Float[Tensor, "R M M"],
    ) -> Tensor:
        """Refine the logits of a head.

        Args:
            pyramid: P2 and coarser levels.
            rois: image index and box.
            features: from which the head predicts its logits.
            logits: of each RoI's category.

        Returns:
            logits (R, M', M'); M' is M for one stage and doubles with each further one.
        """
        band = self.config.fine_stages.boundary_band
        for refined, coarse in self._refine(pyramid, rois, features, logits):
            if band and coarse is not None:
                near = _upsample_band(find_band(coarse > 0, reach=band), side=refined.shape[-1])
                logits = torch.where(near, refined, _upsample(logits))
            else:
                logits = refined
        return logits

    def losses(
        self,
        pyramid: Sequence[Tensor],
        rois: MaskRois,
        targets: Targets,
        *,
        features: Float[Tensor, "R C m m"],
        logits: Float[Tensor, "R M M"],
    ) -> dict[str, Tensor]:
        """Compute the cross-entropy of the finest mask, loss_mask_fine; {} without stages."""
        if not self.stages:
            return {}
        config, band = self.config, self.config.fine_stages.boundary_band
        refined = self._refine(pyramid, rois.rois, features, logits)
        finest, coarse = refined[-1]
        side = max(config.fine_stages.loss_side, finest.shape[-1])
        wanted = make_mask_targets(rois, targets, config=config.targets, side=side)
        near = None
        if band and coarse is not None:
            true = make_mask_targets(rois, targets, config=config.targets, side=coarse.shape[-1])
            near = find_band(coarse > 0, reach=band) | find_band(true > 0, reach=band)
            near = _upsample_band(near, side=side)
        upsampled = F.interpolate(
            finest[:, None].float(), (side, side), mode="bilinear", align_corners=False
        )[:, 0]
        loss = bce_loss(upsampled, wanted, weights=rois.weights, cells=near)
        if near is not None:
            # Far from the outline nothing else trains the first stage.
            first = refined[0][0]
            true = make_mask_targets(rois, targets, config=config.targets, side=first.shape[-1])
            loss = loss + bce_loss(first, true, weights=rois.weights)
        return {"loss_mask_fine": loss * config.loss_weights.mask}

    def _refine(
        self, pyramid: Sequence[Tensor], rois: Tensor, features: Tensor, logits: Tensor
    ) -> list[tuple[Tensor, Tensor | None]]:
        """Run the stages; return the logits after each, and the coarser ones they started from."""
        refined: list[tuple[Tensor, Tensor | None]] = []
        for index, stage in enumerate(self.stages):
            coarse = logits if index else None
            start = logits if coarse is None else _upsample(coarse)
            features, logits = stage(pyramid[0], rois, features, start)
            refined.append((logits, coarse))
        if self.large is not None:
            refined.append((self._refine_large(pyramid[0], rois, features, logits), logits))
        return refined

    def _refine_large(
        self, finest: Tensor, rois: Tensor, features: Tensor, logits: Tensor
    ) -> Tensor:
        """Double the side of all logits; run the last stage on a fixed number of RoIs only."""
        options, upsampled = self.config.fine_stages, _upsample(logits)
        index, is_large = find_large(
            rois,
            num_images=len(finest),
            per_image=options.large_per_image,
            min_side_px=options.large_side_px,
        )
        start = upsampled[index]
        _, refined = self.large(finest, rois[index], features[index], start)  # type: ignore[misc]
        chosen = torch.where(is_large[:, None, None], refined, start)
        return upsampled.index_copy(0, index, chosen.to(upsampled.dtype))


def find_large(
    rois: Float[Tensor, "R 5"], *, num_images: int, per_image: int, min_side_px: float
) -> tuple[Int64[Tensor, " S"], Bool[Tensor, " S"]]:
    """Find the largest RoIs of each image, in a number of slots that the host knows.

    An object's rank counts only RoIs of its own image, so no mask depends on the batch.

    Args:
        rois: image index and box.
        num_images: N.
        per_image: largest number of RoIs of an image.
        min_side_px: smallest side of a square of the box's area.

    Returns:
        S = min(R, N * per_image) different RoIs, and which of them are large.
    """
    area, order = box_area(rois[:, 1:]), torch.arange(len(rois), device=rois.device)
    same_image = rois[:, 0] == rois[:, :1]
    is_before = (area > area[:, None]) | ((area == area[:, None]) & (order < order[:, None]))
    rank = (same_image & is_before).sum(1)
    is_large = (rank < per_image) & (area >= min_side_px**2)
    # The large ones first, in order. Not a stable sort, which ONNX does not have.
    key = is_large * len(rois) - order
    index = key.topk(min(len(rois), num_images * per_image)).indices
    return index, is_large[index]


def find_band(mask: Bool[Tensor, "R M M"], *, reach: int) -> Bool[Tensor, "R M M"]:
    """Find the cells within `reach` cells of the other side of an outline, on either side."""
    inside = mask.float()[:, None]
    grown, shrunk = (
        F.max_pool2d(each, 2 * reach + 1, stride=1, padding=reach) for each in (inside, -inside)
    )
    band: Tensor = grown > -shrunk
    return band[:, 0]


def _upsample(logits: Tensor) -> Tensor:
    doubled: Tensor = F.interpolate(
        logits[:, None], scale_factor=2.0, mode="bilinear", align_corners=False
    )
    return doubled[:, 0]


def _upsample_band(band: Tensor, *, side: int) -> Tensor:
    cells: Tensor = F.interpolate(band[:, None].float(), (side, side), mode="nearest")
    return cells[:, 0] > 0
