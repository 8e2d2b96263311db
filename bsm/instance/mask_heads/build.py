"""The one place that knows all mask heads.

A mask head pools what it needs from the pyramid P2 to P5, so the model around it is the same for
all. Its interface:

    losses(pyramid, rois, targets)              weighted scalars by name, to be added
    predict(pyramid, rois, category_index)      mask logits (R, M, M); M is the head's own choice
"""

from typing import TypeAlias

from bsm.configs.instance import BoxConvention, MaskHeadConfig
from bsm.instance.mask_heads.bmask import BMaskHead
from bsm.instance.mask_heads.plain import PlainMaskHead
from bsm.instance.mask_heads.pointrend import PointRendMaskHead
from bsm.instance.mask_heads.squeeze import SqueezeMaskHead

MaskHead: TypeAlias = PlainMaskHead | BMaskHead | PointRendMaskHead | SqueezeMaskHead


def build_mask_head(
    in_channels: int,
    *,
    num_classes: int,
    config: MaskHeadConfig,
    box_convention: BoxConvention = "detectron2",
) -> MaskHead:
    """Build the head that a config names, for a pyramid of `in_channels`."""
    heads: dict[str, type[MaskHead]] = {
        "plain": PlainMaskHead,
        "bmask": BMaskHead,
        "pointrend": PointRendMaskHead,
        "squeeze": SqueezeMaskHead,
    }
    return heads[config.kind](
        in_channels, num_classes=num_classes, config=config, box_convention=box_convention
    )
