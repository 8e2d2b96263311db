"""The refiner: from a crop of a photo and a given mask to a sharper mask.

A backbone sees the photo. At each of its strides the given mask and the distance to its outline are
joined to the features, and a narrow decoder goes up to the pixels of the crop, or to cells of four
pixels that go in and come out as channels. It corrects the logits that the given mask has by
itself, so at initialization the mask comes out as it went in.

N images, T target slots, R crops, S side of a crop
"""

import copy
import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bsm.backbone import build_backbone, extract_features
from bsm.backbone_norms import fold_norms
from bsm.configs.refine import RefinerConfig
from bsm.configs.shared import GuidedFlowConfig, SqueezeConfig
from bsm.guided_flow import flow_targets_from_distance, guided_flow_losses
from bsm.instance.tensors import Targets
from bsm.light import LightBoundarySqueeze
from bsm.losses import dice_loss
from bsm.refine.outline import clipped_distance
from bsm.refine.training_crops import TrainingCrops, make_training_crops
from bsm.squeeze import SqueezedFeatures

_REACH = 16
"""The decoder sees the distance to the given outline up to this, in cells."""
_NEAR = 4
"""Cells this near an outline are on it: a second, steeper distance for the decoder, and where the
loss weighs more."""
_GIVEN_CHANNELS = 3
_SQUEEZE_WIDTH = 24
_BAND = 3
"""Width of the contraction and expansion bands, in cells of the squeezed feature."""
_FLOW_REACH = 6
"""Flows are supervised up to this distance, in cells of the squeezed feature: damage reaches
farther than the bands."""
_BAND_WEIGHT = 0.3
"""Of the losses of bands and flows: they serve the mask, whose losses weigh 1."""


class Refiner(nn.Module):
    """Refine masks of photos; see `bsm.refine.refine.refine_masks` for whole photos."""

    def __init__(self, config: RefinerConfig) -> None:
        super().__init__()
        self.config = config
        # The timm model, named "trunk" as in detectors.
        self.trunk, stages = build_backbone(config.backbone)
        widths = config.widths[config.cell_px.bit_length() - 1 :]
        w1, w2 = widths[:2]
        channels = [stage["num_chs"] for stage in stages]
        self.pixels = _build_block((3 + _GIVEN_CHANNELS) * config.cell_px**2, w1)
        # With larger cells the second finest stride is the finest of the backbone.
        self.stem = _build_block(3 + _GIVEN_CHANNELS, w2) if config.cell_px == 1 else None
        self.joins = nn.ModuleList(
            _build_block(c + _GIVEN_CHANNELS, w, side=1)
            for c, w in zip(channels, widths[-len(channels) :], strict=True)
        )
        self.merges = nn.ModuleList(
            _build_block(coarse + fine, fine)
            for fine, coarse in reversed(list(itertools.pairwise(widths[1:])))
        )
        self.squeeze: LightBoundarySqueeze | None = None
        if config.squeeze != "none":
            self.squeeze = LightBoundarySqueeze(
                w2,
                fine_channels=w1,
                config=SqueezeConfig(
                    variant="light",
                    light_channels=_SQUEEZE_WIDTH,
                    warp="flow" if config.squeeze == "guided" else "none",
                    norm="group",
                ),
            )
            self.bands = nn.ModuleDict(
                {
                    name: nn.Conv2d(_SQUEEZE_WIDTH, 1, 1)
                    for name in ("boundary", "contraction", "expansion")
                }
            )
        self.narrow = _build_block(w2, w1, side=1)
        self.last = _build_block(2 * w1, w1)
        self.correction = nn.Conv2d(w1, config.cell_px**2, 3, padding=1)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)  # type: ignore[arg-type]
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        mean, std = config.backbone.pixel_mean, config.backbone.pixel_std
        self.register_buffer("pixel_mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("pixel_std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(
        self, images: Tensor, image_sizes_hw: Tensor, targets: Targets
    ) -> dict[str, Tensor]:
        """Damage the masks of some objects of each image, refine them, and compare with the truth.

        Args:
            images: (N, 3, H, W) RGB, 0 to 255, padded.
            image_sizes_hw: not read: padding is black, as what lies beyond a photo is.
            targets: with whole masks.

        Returns:
            the losses by name.
        """
        crops = make_training_crops(images, targets, config=self.config)
        logits, squeezed = self._decode(crops.pixels, crops.given)
        return self._compute_losses(logits, squeezed, crops)

    def predict(
        self, pixels: Float[Tensor, "R 3 S S"], masks: Float[Tensor, "R S S"]
    ) -> Float[Tensor, "R S S"]:
        """Predict logits of the refined masks.

        Args:
            pixels: RGB, 0 to 255.
            masks: 0/1; S is a multiple of 32.
        """
        return self._decode(pixels, masks)[0]

    def _decode(self, pixels: Tensor, masks: Tensor) -> tuple[Tensor, SqueezedFeatures | None]:
        x = (pixels - self.pixel_mean) / self.pixel_std
        distance = clipped_distance(masks, reach=_REACH)
        given = torch.stack([masks - 0.5, distance / _REACH, (distance / _NEAR).clamp(-1, 1)], 1)
        everything = torch.cat([x, given], 1)
        half = F.avg_pool2d(everything, 2)
        levels = self._join(x, half[:, 3:])
        if self.stem is not None:
            levels.insert(0, self.stem(half))
        y = levels.pop()
        for finer, merge in zip(reversed(levels), self.merges, strict=True):
            y = merge(torch.cat([F.interpolate(y, scale_factor=2.0, mode="nearest"), finer], 1))
        cell = self.config.cell_px
        everything = F.pixel_unshuffle(everything, cell)
        fine, squeezed = self.pixels(_order_channels_last(everything)), None
        if self.squeeze is not None:
            squeezed = self.squeeze(y, fine)
            y = squeezed.refined
        y = F.interpolate(self.narrow(y), scale_factor=2.0, mode="bilinear", align_corners=False)
        corrected = F.pixel_shuffle(self.correction(self.last(torch.cat([y, fine], 1))), cell)
        return corrected[:, 0] + distance.clamp(-6, 6) / 2, squeezed

    def _join(self, x: Tensor, given: Tensor) -> list[Tensor]:
        """Join the features of pixels (R, 3, S, S) with the given masks (R, 3, S / 2, S / 2)."""
        features, joined = extract_features(self.trunk, _order_channels_last(x)), []
        for feature, join in zip(features, self.joins, strict=True):
            given = F.avg_pool2d(given, 2)
            joined.append(join(torch.cat([feature, given], 1)))
        return joined

    def _compute_losses(
        self, logits: Tensor, squeezed: SqueezedFeatures | None, crops: TrainingCrops
    ) -> dict[str, Tensor]:
        truth, weights = crops.truth, crops.weights
        real = weights.sum().clamp(min=1)
        distance = clipped_distance(truth >= 0.5, reach=_REACH)
        near = 1 + self.config.outline_weight * (distance.abs() < _NEAR).float()
        cells = F.binary_cross_entropy_with_logits(logits.float(), truth, reduction="none") * near
        entropy = cells.flatten(1).sum(1) / near.flatten(1).sum(1)
        losses = {
            "loss_mask": (entropy * weights).sum() / real,
            "loss_dice": dice_loss(logits, truth, weights=weights),
        }
        if squeezed is not None:
            losses |= self._compute_squeeze_losses(squeezed, distance, weights)
        return losses

    def _compute_squeeze_losses(
        self, squeezed: SqueezedFeatures, distance: Tensor, weights: Tensor
    ) -> dict[str, Tensor]:
        side = 2 * self.config.cell_px
        d = F.avg_pool2d(distance[:, None], side)[:, 0] / side
        wanted = {
            "boundary": d.abs() < 0.75,
            "contraction": (d < 0) & (d > -_BAND),
            "expansion": (d > 0) & (d < _BAND),
        }
        losses = {}
        for name, band in wanted.items():
            logits = self.bands[name](getattr(squeezed, name))[:, 0]
            dice = dice_loss(logits, band.float(), weights=weights)
            losses[f"loss_{name}"] = _BAND_WEIGHT * dice
        if self.config.squeeze == "guided":
            targets = flow_targets_from_distance(d, reach=_FLOW_REACH)
            config = GuidedFlowConfig(weight=_BAND_WEIGHT)
            losses |= guided_flow_losses(squeezed.flows, targets, config=config, weights=weights)
        return losses


def _order_channels_last(x: Tensor) -> Tensor:
    """Store the channels of a cell side by side, which convolutions on a CPU compute faster."""
    return x.contiguous(memory_format=torch.channels_last)


def fold_for_inference(model: Refiner) -> Refiner:
    """Return a copy that shares all but the backbone, whose frozen norms its convolutions do."""
    copied = copy.copy(model)
    # A shallow copy of a module shares the dict of its parts.
    copied._modules = {**model._modules, "trunk": fold_norms(model.trunk)}  # noqa: SLF001
    return copied


def _build_block(in_channels: int, channels: int, *, side: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, side, padding=side // 2, bias=False),
        nn.GroupNorm(8, channels),
        nn.ReLU(),
    )
