"""Build the mask head that a config names.

A mask head pools what it needs from the pyramid P2 to P5, so the rest of the model is the same for
all heads. Their interface:

    losses(pyramid, rois, targets)              weighted scalars by name, to add up
    predict(pyramid, rois, category_index)      mask logits (R, M, M); each head has its own M
"""

from typing import TypeAlias

from bsm.configs.instance import MaskRCNNConfig
from bsm.instance.mask_heads.bmask import BMaskHead
from bsm.instance.mask_heads.plain import PlainMaskHead
from bsm.instance.mask_heads.pointrend import PointRendMaskHead
from bsm.instance.mask_heads.squeeze import SqueezeMaskHead

MaskHead: TypeAlias = PlainMaskHead | BMaskHead | PointRendMaskHead | SqueezeMaskHead


def build_mask_head(config: MaskRCNNConfig) -> MaskHead:
    """Build the mask head of a model."""
    heads: dict[str, type[MaskHead]] = {
        "plain": PlainMaskHead,
        "bmask": BMaskHead,
        "pointrend": PointRendMaskHead,
        "squeeze": SqueezeMaskHead,
    }
    return heads[config.mask_head.kind](config)
