"""The configs of whole models."""

from dataclasses import replace
from typing import Any, TypeVar

from bsm.configs.instance import MaskRCNNConfig
from bsm.configs.refine import RefinerConfig
from bsm.configs.semantic import DeepLabConfig

ModelConfig = MaskRCNNConfig | DeepLabConfig | RefinerConfig
"""The config of any model, told apart by `task`. It is not in bsm/build.py because recipes and
`--help` read configs without importing torch."""

_Model = TypeVar("_Model", bound=ModelConfig)


def without_weights(config: _Model) -> _Model:
    """Return the config with random initial weights, for a model whose weights are loaded later."""
    # Each model has its own class of backbone config, and replace keeps it.
    backbone: Any = replace(config.backbone, weights="")
    start: dict[str, Any] = {"weights": "", "weights_leave_out": (), "backbone": backbone}
    if not isinstance(config, RefinerConfig):
        start["weights_categories"] = ()
    return replace(config, **start)
