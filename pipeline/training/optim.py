"""The optimizers, and the learning rate as a pure function of the step.

A scheduler object would be state to save; this way a resumed run computes the same rate.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

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

    As in detectron2, weight decay applies to biases but not to norm layers.
    """
    norms: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter, is_norm in _iter_trainable(model):
        (norms if is_norm else others).append(parameter)
    groups = [
        {"params": others, "weight_decay": optim.weight_decay},
        {"params": norms, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    lr = learning_rate(optim, step=0)
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
            group["lr"] = lr
        self.found_inf = torch.isfinite(gradient_norm).logical_not().float()
        self.step()


class FiniteSGD(FiniteOptimizer, torch.optim.SGD):
    """SGD as detectron2 trains Mask R-CNN."""


class FiniteAdamW(FiniteOptimizer, torch.optim.AdamW):
    """AdamW with torch's betas."""


def _iter_trainable(model: nn.Module) -> Iterator[tuple[nn.Parameter, bool]]:
    seen: set[int] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                yield parameter, isinstance(module, _NORM_LAYERS)
