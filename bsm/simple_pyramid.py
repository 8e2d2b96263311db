"""The simple feature pyramid of ViTDet: four levels from the last map of a plain transformer.

Li et al., Exploring Plain Vision Transformer Backbones for Object Detection, sec. 3. The map at
stride 16 is upsampled by transposed convolutions, or pooled; nothing comes from earlier blocks.

N images, H, W image size, D channels of the pyramid
"""

from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

STRIDE = 16
"""Of the map that the pyramid is made from."""


class SimplePyramid(nn.Module):
    """Turn a map (N, C, H / 16, W / 16) into levels (N, D, H / s, W / s) at strides 4 to 32."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        half, quarter = channels // 2, channels // 4
        resize: dict[int, nn.Sequential] = {
            4: nn.Sequential(
                _upsample(channels, half), LayerNorm2d(half), nn.GELU(), _upsample(half, quarter)
            ),
            8: nn.Sequential(_upsample(channels, half)),
            16: nn.Sequential(),
            32: nn.Sequential(nn.MaxPool2d(kernel_size=2)),
        }
        sources = {4: quarter, 8: half, 16: channels, 32: channels}
        self.levels = nn.ModuleList(
            nn.Sequential(*layers, *_project(sources[stride], width))
            for stride, layers in resize.items()
        )

    def forward(self, feature: Tensor) -> list[Tensor]:
        """Compute the levels, finest first."""
        return [level(feature) for level in self.levels]


def _upsample(channels: int, width: int) -> nn.Module:
    return nn.ConvTranspose2d(channels, width, kernel_size=2, stride=2)


def _project(channels: int, width: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, width, 1, bias=False),
        LayerNorm2d(width),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        LayerNorm2d(width),
    ]
