import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from pipeline.recipe import OptimConfig
from pipeline.training.optim import build_optimizer, clip_gradients, learning_rate

OPTIM = OptimConfig(
    global_batch=8,
    lr_per_image=0.01,
    steps=100,
    warmup_steps=10,
    warmup_factor=0.1,
    decay_at=(50, 80),
)


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.008), (5, 0.044), (10, 0.08), (49, 0.08), (50, 0.008), (79, 0.008), (80, 0.0008)],
)
def test_the_rate_follows_warmup_and_decay_and_scales_with_the_batch(step, rate):
    assert learning_rate(OPTIM, step=step) == pytest.approx(rate)


def test_no_warmup_starts_at_the_full_rate():
    assert learning_rate(OptimConfig(warmup_steps=0), step=0) == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.008), (10, 0.08 * 0.9**0.9), (50, 0.08 * 0.5**0.9), (100, 0)]
)
def test_a_poly_rate_falls_from_warmup_to_zero_at_the_last_step(step, rate):
    poly = replace(OPTIM, schedule="poly")
    assert learning_rate(poly, step=step) == pytest.approx(rate)


def test_poly_power_changes_the_curve():
    straight = replace(OPTIM, schedule="poly", poly_power=1.0, warmup_steps=0)
    assert learning_rate(straight, step=25) == pytest.approx(0.08 * 0.75)
    assert learning_rate(straight, step=101) == 0  # no error after the last step


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.008), (10, 0.08), (55, 0.04), (77, 0.08 * 0.1520), (100, 0), (120, 0)]
)
def test_a_cosine_rate_falls_after_warmup(step, rate):
    cosine = replace(OPTIM, schedule="cosine")
    assert learning_rate(cosine, step=step) == pytest.approx(rate, rel=1e-2)


def test_norms_do_not_decay_but_biases_do_and_frozen_parameters_are_left_out():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Linear(4, 2)
    )
    model[3].weight.requires_grad_(False)
    decay = {
        id(parameter): group["weight_decay"]
        for group in build_optimizer(model, optim=OPTIM).param_groups
        for parameter in group["params"]
    }
    assert decay == {
        id(model[0].weight): 1e-4,
        id(model[0].bias): 1e-4,
        id(model[1].weight): 0.0,
        id(model[1].bias): 0.0,
        id(model[2].weight): 0.0,
        id(model[2].bias): 0.0,
        id(model[3].bias): 1e-4,
    }


def test_clipping_scales_to_the_norm_and_returns_the_norm_before():
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.grad = torch.tensor([[3.0, 4.0]])
    assert clip_gradients(layer, max_norm=1.0).item() == pytest.approx(5.0)
    assert layer.weight.grad.norm().item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_an_update_with_bad_gradients_changes_neither_weights_nor_state(name):
    layer = nn.Linear(3, 2)
    optimizer = build_optimizer(layer, optim=replace(OPTIM, optimizer=name))
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.update(lr=0.1, gradient_norm=clip_gradients(layer, max_norm=None))
    weights = layer.weight.clone()
    state = copy.deepcopy(optimizer.state[layer.weight])
    assert state
    layer.weight.grad[0, 0] = torch.inf
    optimizer.update(lr=0.1, gradient_norm=clip_gradients(layer, max_norm=None))
    assert torch.equal(layer.weight, weights)
    for key, value in state.items():
        assert torch.equal(optimizer.state[layer.weight][key], value), key
    layer.weight.grad.fill_(1.0)
    optimizer.update(lr=0.1, gradient_norm=clip_gradients(layer, max_norm=None))
    assert not torch.equal(layer.weight, weights)
