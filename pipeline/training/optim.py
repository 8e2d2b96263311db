"""The optimizers, and the learning rate as a pure function of the step.

A scheduler object would be state to save; this way a resumed run computes the same rate.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bsm.backbone_layers import describe_backbone
from pipeline.recipe import OptimConfig

_NORM_LAYERS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm2d,
    nn.GroupNorm,
    nn.LayerNorm,
)


def learning_rate(optim: OptimConfig, *, step: int) -> float:
    """Return the learning rate of a step: linear warm-up times the schedule's decay.

    The same as detectron2's WarmupMultiStepLR and WarmupPolyLR.
    """
    warmup = 1.0
    if step < optim.warmup_steps:
        done = step / optim.warmup_steps
        warmup = optim.warmup_factor * (1 - done) + done
    return optim.lr * warmup * _decay(optim, step=step)


def _decay(optim: OptimConfig, *, step: int) -> float:
    match optim.schedule:
        case "multistep":
            return optim.decay_factor ** sum(step >= milestone for milestone in optim.decay_at)
        case "poly":
            return math.pow(max(0.0, 1 - step / optim.steps), optim.poly_power)
        case "cosine":
            after = max(0, step - optim.warmup_steps)
            share = min(1.0, after / max(1, optim.steps - optim.warmup_steps))
            return (1 + math.cos(math.pi * share)) / 2


def build_optimizer(model: nn.Module, *, optim: OptimConfig) -> "FiniteOptimizer":
    """Build the optimizer of a model's trained parameters.

    As in detectron2, weight decay applies to biases but not to norm layers, by default.

    Args:
        model: any; one of `bsm.build.build_model` if its backbone or its biases are special.
        optim: the optimizer, and which parameters learn slower or do not decay.

    Raises:
        ValueError: timm does not number the layers of the backbone.
    """
    lr = learning_rate(optim, step=0)
    groups = [
        {
            "params": parameters,
            "weight_decay": optim.weight_decay if rule.decays else 0.0,
            "lr": lr * rule.lr_scale,
            "lr_scale": rule.lr_scale,
        }
        for rule, parameters in _group_parameters(model, optim=optim).items()
    ]
    # Only fused optimizers can skip an update on the device.
    if optim.optimizer == "adamw":
        return FiniteAdamW(groups, lr=lr, fused=True)
    return FiniteSGD(groups, lr=lr, momentum=optim.momentum, fused=True)


def clip_gradients(model: nn.Module, *, max_norm: float | None) -> Tensor:
    """Clip the gradients to a norm and return their norm before, without a host sync."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if max_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


class FiniteOptimizer(torch.optim.Optimizer):
    """An optimizer that changes neither weights nor state in a step with `found_inf` = 1."""

    found_inf: Tensor | None = None

    def update(self, *, lr: float, gradient_norm: Tensor) -> None:
        """Update the weights; on the device, skip the update if the gradients are not finite."""
        for group in self.param_groups:
            # Checkpoints of earlier versions have no scale.
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self.found_inf = torch.isfinite(gradient_norm).logical_not().float()
        self.step()


class FiniteSGD(FiniteOptimizer, torch.optim.SGD):
    """SGD as detectron2 trains Mask R-CNN."""


class FiniteAdamW(FiniteOptimizer, torch.optim.AdamW):
    """AdamW with torch's betas."""


class _Rule(NamedTuple):
    """The settings of a group of parameters."""

    lr_scale: float
    decays: bool


def _group_parameters(model: nn.Module, *, optim: OptimConfig) -> dict[_Rule, list[nn.Parameter]]:
    """Group the trained parameters by rule: fast ones first, then those that decay."""
    is_plain = optim.decay_biases and optim.backbone_lr_factor == optim.layer_decay == 1.0
    backbone = {} if is_plain else describe_backbone(model)
    groups: dict[_Rule, list[nn.Parameter]] = {}
    for name, parameter, is_norm in _iter_trainable(model):
        place = backbone.get(name)
        scale = 1.0
        if place is not None:
            after = place.layers - place.layer
            scale = optim.backbone_lr_factor * optim.layer_decay**after
        spared = parameter.ndim <= 1 or (place is not None and not place.decays)
        rule = _Rule(scale, decays=not is_norm and (optim.decay_biases or not spared))
        groups.setdefault(rule, []).append(parameter)
    return dict(sorted(groups.items(), reverse=True))


def _iter_trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, bool]]:
    """Yield name, parameter, and whether it belongs to a norm layer."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                full = f"{prefix}.{name}" if prefix else name
                yield full, parameter, isinstance(module, _NORM_LAYERS)
