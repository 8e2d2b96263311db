"""Recompute a backbone's activations in the backward pass instead of keeping them.

timm does it stage by stage, or block by block in a plain transformer, with torch.utils.checkpoint.
Gradients are the same; memory is traded for about a second forward pass of the backbone.
"""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bsm.backbone_layers import get_trunk


def checkpoint_activations(model: nn.Module) -> None:
    """Let the backbone of a model recompute its activations.

    Args:
        model: any that `bsm.build.build_model` builds.

    Raises:
        ValueError: the backbone has batch norms, whose running statistics a second pass would move
            once more, or timm cannot do it for this one.
    """
    trunk: Any = get_trunk(model)
    name = model.config.backbone.name  # type: ignore[union-attr]
    if any(isinstance(module, _BatchNorm) for module in trunk.modules()):
        raise ValueError(
            f"activation checkpointing: {name} has batch norms, whose running statistics would be "
            "updated twice in each step; use backbone.norm frozen or group"
        )
    # A plain transformer is inside a module that takes its features.
    inner = trunk if hasattr(trunk, "set_grad_checkpointing") else getattr(trunk, "model", trunk)
    if not hasattr(inner, "set_grad_checkpointing"):
        raise ValueError(f"activation checkpointing: timm cannot recompute parts of {name}")
    inner.set_grad_checkpointing(enable=True)
