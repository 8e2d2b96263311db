"""The layers of a model's backbone, for learning rates that fall from layer to layer.

timm numbers the layers of each of its models: the stem is 0, then come the blocks in their order. A
transformer that is tuned keeps more of what it knows if its first layers learn the slowest (BEiT,
ViTDet).
"""

from typing import Any, NamedTuple

import timm
import torch
from timm.models import group_parameters
from torch import nn

from bsm.checkpoints.weights import flatten_name


class BackboneParameter(NamedTuple):
    """The place of a parameter in its backbone."""

    layer: int
    """0 is the stem."""
    layers: int
    """Number of layers of the backbone."""
    decays: bool
    """Whether timm lets it decay; position embeddings and extra tokens do not."""


def describe_backbone(model: Any) -> dict[str, BackboneParameter]:  # noqa: ANN401
    """Describe each parameter of a model's backbone, by its name in the model.

    Args:
        model: any that `bsm.build.build_model` builds.
    """
    trunk, name = get_trunk(model), str(model.config.backbone.name)
    prefix = next(key for key, module in model.named_modules() if module is trunk)
    numbers = number_layers(trunk, name=name)
    layers = max(numbers.values()) + 1
    spared = {flatten_name(key) for key in _get_spared(_build_whole(name))}
    return {
        f"{prefix}.{key}": BackboneParameter(number, layers, _flatten(key) not in spared)
        for key, number in numbers.items()
    }


def number_layers(trunk: nn.Module, *, name: str) -> dict[str, int]:
    """Number the layers that the parameters of a trunk belong to, without gaps.

    Args:
        trunk: timm's model, cut for features, with timm's parameter names.
        name: timm's name of it.

    Raises:
        ValueError: timm does not number its layers.
    """
    whole = _build_whole(name)
    if not hasattr(whole, "group_matcher"):
        raise ValueError(f"backbone.name {name!r}: timm does not number its layers")
    by_name = group_parameters(whole, whole.group_matcher(coarse=False), reverse=True)
    known = {flatten_name(key): number for key, number in by_name.items()}
    found = {key: known[_flatten(key)] for key, _ in trunk.named_parameters()}
    order = {number: index for index, number in enumerate(sorted(set(found.values())))}
    return {key: order[number] for key, number in found.items()}


def get_trunk(model: Any) -> nn.Module:  # noqa: ANN401  detectors and refiners differ
    """Return the timm model inside a model."""
    trunk: nn.Module = model.trunk if hasattr(model, "trunk") else model.backbone.trunk
    return trunk


def _build_whole(name: str) -> Any:  # noqa: ANN401  timm's models share no base class
    with torch.device("meta"):
        return timm.create_model(name)


def _get_spared(whole: Any) -> set[str]:  # noqa: ANN401
    return set(whole.no_weight_decay()) if hasattr(whole, "no_weight_decay") else set()


def _flatten(name: str) -> str:
    """Return a trunk's parameter name as timm's whole model has it, flattened."""
    return flatten_name(name.removeprefix("model."))
