"""A timm trunk that keeps its resolution: dilated from an output stride on, for label maps.

N images, H, W image size, padded to a multiple of the output stride
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bsm.backbone import build_trunk, freeze, normalize_pixels, trunk_features
from bsm.configs.shared import BackboneConfig

LOW_STRIDE = 4
"""Of the first stage's feature (res2), which the decoder draws outlines from."""


class DilatedTrunk(nn.Module):
    """Features of all four stages; those beyond the output stride have its resolution.

    A stage that would halve its side dilates its kernels instead, so weights that were trained
    without dilation mean what they meant. Images are padded to a multiple of the output stride, so
    that each feature is exactly as much finer than the next as its stride says.

    Raises:
        ValueError: timm does not know the trunk or cannot dilate it, or weights do not fit.
    """

    def __init__(self, config: BackboneConfig, *, output_stride: int) -> None:
        super().__init__()
        self.output_stride = output_stride
        self.trunk, stages = build_trunk(config, output_stride=output_stride)
        freeze(self.trunk, stages=stages, freeze_at=config.freeze_at)
        self.channels = [int(stage["num_chs"]) for stage in stages]
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.register_buffer("pixel_mean", torch.tensor(config.pixel_mean), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(config.pixel_std), persistent=False)

    def forward(self, images: Tensor, image_sizes_hw: Tensor) -> Sequence[Tensor]:
        """Turn RGB images (N, 3, H, W) of 0 to 255 into features (N, C, H / stride, W / stride)."""
        pixels = normalize_pixels(
            images,
            image_sizes_hw,
            self.pixel_mean,
            self.pixel_std,
            pad_multiple=self.output_stride,
        )
        return trunk_features(self.trunk, pixels)
