"""The optimizers, and a learning rate that is a pure function of the step.

No schedule object, so there is no schedule state to lose: a resumed run computes the same rate.
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
    """Give the rate of one step: linear warm-up times the schedule's decay.

    As detectron2's WarmupMultiStepLR and WarmupPolyLR.
    """
    warmup = 1.0
    if step < optim.warmup_steps:
        done = step / optim.warmup_steps
        warmup = optim.warmup_factor * (1 - done) + done
    return optim.lr * warmup * _decay(optim, step=step)


def _decay(optim: OptimConfig, *, step: int) -> float:
    match optim.schedule:
        case "multistep":
            return optim.decay_factor ** sum(step >= border for border in optim.decay_at)
        case "poly":
            return math.pow(max(0.0, 1 - step / optim.steps), optim.poly_power)
        case "cosine":
            after = max(0, step - optim.warmup_steps)
            share = min(1.0, after / max(1, optim.steps - optim.warmup_steps))
            return (1 + math.cos(math.pi * share)) / 2


def build_optimizer(model: nn.Module, *, optim: OptimConfig) -> "FiniteOptimizer":
    """Group a model's trained parameters and put an optimizer over them.

    Norm layers do not decay; biases do, as in detectron2.
    """
    norms: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter, is_norm in _trained(model):
        (norms if is_norm else others).append(parameter)
    groups = [
        {"params": others, "weight_decay": optim.weight_decay},
        {"params": norms, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    lr = learning_rate(optim, step=0)
    # Only the fused kernels can skip an update on the device.
    if optim.optimizer == "adamw":
        return FiniteAdamW(groups, lr=lr, fused=True)
    return FiniteSGD(groups, lr=lr, momentum=optim.momentum, fused=True)


def clip_gradients(model: nn.Module, *, max_norm: float | None) -> Tensor:
    """Scale all gradients down to a norm, and give the norm they had, without asking the host."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if max_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


class FiniteOptimizer(torch.optim.Optimizer):
    """An optimizer that changes neither weights nor state in a step whose `found_inf` is 1."""

    found_inf: Tensor | None = None

    def update(self, *, lr: float, gradient_norm: Tensor) -> None:
        """Make one update at a rate; skip it, on the device, when the gradients are not finite."""
        for group in self.param_groups:
            group["lr"] = lr
        self.found_inf = torch.isfinite(gradient_norm).logical_not().float()
        self.step()


class FiniteSGD(FiniteOptimizer, torch.optim.SGD):
    """SGD as detectron2 trains Mask R-CNN."""


class FiniteAdamW(FiniteOptimizer, torch.optim.AdamW):
    """AdamW with torch's betas."""


def _trained(model: nn.Module) -> Iterator[tuple[nn.Parameter, bool]]:
    seen: set[int] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                yield parameter, isinstance(module, _NORM_LAYERS)
