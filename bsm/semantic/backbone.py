"""A timm backbone that keeps its resolution: dilated beyond an output stride, for label maps.

N images, H, W image size, padded to a multiple of the output stride
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bsm.backbone import build_backbone, extract_features, normalize_pixels
from bsm.configs.shared import BackboneConfig

LOW_STRIDE = 4
"""Of the first stage's feature (res2), which gives the decoder its outlines."""


class DilatedBackbone(nn.Module):
    """Compute the features of all four stages, none coarser than the output stride.

    A stage that would halve its resolution dilates its kernels instead, so weights trained without
    dilation keep their meaning. Images are padded to a multiple of the output stride, so the sizes
    of features are in the exact ratio of their strides.

    Raises:
        ValueError: timm does not know the backbone or cannot dilate it, or the weights do not fit.
    """

    def __init__(
        self, config: BackboneConfig, *, output_stride: int, dilate_first_blocks: bool = False
    ) -> None:
        super().__init__()
        self.output_stride = output_stride
        # The timm model, named "trunk" in checkpoints.
        self.trunk, stages = build_backbone(
            config, output_stride=output_stride, dilate_first_blocks=dilate_first_blocks
        )
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
        return extract_features(self.trunk, pixels)
