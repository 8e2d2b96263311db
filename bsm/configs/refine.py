"""Config of the refiner, which sharpens given masks."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Interval, MinLen, MultipleOf

from bsm.configs.rules import Config, NonNegativeFloat, PositiveInt
from bsm.configs.shared import BackboneConfig

_CropPx = Annotated[int, MultipleOf(32), Interval(ge=64, le=1024)]
_Width = Annotated[int, MultipleOf(8), Ge(8)]


@dataclass(frozen=True, kw_only=True, slots=True)
class RefinerConfig(Config):
    """A refiner: for each given mask, a crop of the photo and a decoder that corrects the mask."""

    task: ClassVar[Literal["refine"]] = "refine"

    backbone: BackboneConfig = field(
        default_factory=lambda: BackboneConfig(
            name="tf_efficientnet_lite0",
            norm="frozen",
            freeze_at=5,
            pixel_mean=(127.0, 127.0, 127.0),
            pixel_std=(128.0, 128.0, 128.0),
        )
    )
    """Any timm backbone with features at strides 4 to 32."""
    widths: tuple[_Width, _Width, _Width, _Width, _Width, _Width] = (16, 24, 40, 64, 96, 96)
    """Channels of the decoder at strides 1, 2, 4, 8, 16 and 32; with cells of 2 px the first is not
    used."""
    cell_px: Literal[1, 2] = 1
    """Side of the decoder's finest cell in pixels of the crop. With 2 nothing is computed at stride
    1: the four pixels of a cell are its channels."""
    squeeze: Literal["none", "plain", "guided"] = "guided"
    """Squeeze the feature of the second finest stride from both sides of the outline: not at all,
    without flows, or with flows that the distance to the outline guides."""
    context: Annotated[float, Ge(1)] = 1.3
    """Side of a crop in longer sides of the mask's box."""
    train_px: _CropPx = 128
    """Side of a crop in training."""
    crop_px: Annotated[tuple[_CropPx, ...], MinLen(1)] = (160, 192, 256)
    """Sides of crops in inference; each mask takes the smallest that keeps all pixels of its crop,
    or the largest there is. Below train_px small objects look smaller than in training, and come
    out worse than they went in (docs/refine.md)."""
    crops_per_image: PositiveInt = 2
    """Objects of an image that a training step refines."""
    window_share: Annotated[float, Interval(ge=0, le=1)] = 0.5
    """Share of the training crops of large objects that show a part of their outline, not all."""
    outline_weight: NonNegativeFloat = 3.0
    """Extra weight of cross-entropy near the true outline."""
    weights: str = ""
    """Start weights of the whole model."""
    weights_leave_out: tuple[str, ...] = ()
    """Parts of the start weights to leave out."""

    def find_problems(self) -> Iterator[tuple[str, str]]:
        """Check the order of sides, and that parts are left out of something."""
        if list(self.crop_px) != sorted(set(self.crop_px)):
            yield "crop_px", f"must increase, got {self.crop_px}"
        if self.weights_leave_out and not self.weights:
            yield "weights_leave_out", f"needs weights to leave out {self.weights_leave_out} of"
