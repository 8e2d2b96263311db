"""BoundarySqueeze in plain torch: the module, its targets and losses, and models built on them."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bsm.build import build_model
    from bsm.configs.instance import MaskRCNNConfig
    from bsm.field import MaskTargets, mask_to_field, targets_from_field
    from bsm.losses import SqueezeLogits, squeeze_losses
    from bsm.morphology import targets_from_masks
    from bsm.squeeze import BoundarySqueeze, SqueezedFeatures

__all__ = [
    "BoundarySqueeze",
    "MaskRCNNConfig",
    "MaskTargets",
    "SqueezeLogits",
    "SqueezedFeatures",
    "build_model",
    "mask_to_field",
    "squeeze_losses",
    "targets_from_field",
    "targets_from_masks",
]

_PUBLIC = {
    "bsm.build": ("build_model",),
    "bsm.configs.instance": ("MaskRCNNConfig",),
    "bsm.field": ("MaskTargets", "mask_to_field", "targets_from_field"),
    "bsm.losses": ("SqueezeLogits", "squeeze_losses"),
    "bsm.morphology": ("targets_from_masks",),
    "bsm.squeeze": ("BoundarySqueeze", "SqueezedFeatures"),
}


def __getattr__(name: str) -> object:
    """Import a public name at its first use, so that a config or --help does not wait for torch."""
    for module, names in _PUBLIC.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
