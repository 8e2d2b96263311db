"""BoundarySqueeze in plain torch: the module, its targets and losses, and models built on them."""

from bsm.config import MaskRCNNConfig, build_model
from bsm.field import MaskTargets, mask_to_field, targets_from_field
from bsm.losses import SqueezeLogits, squeeze_losses
from bsm.morphology import targets_from_masks
from bsm.squeeze import BoundarySqueeze, Squeezed

__all__ = [
    "BoundarySqueeze",
    "MaskRCNNConfig",
    "MaskTargets",
    "SqueezeLogits",
    "Squeezed",
    "build_model",
    "mask_to_field",
    "squeeze_losses",
    "targets_from_field",
    "targets_from_masks",
]
