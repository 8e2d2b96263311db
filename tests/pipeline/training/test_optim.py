import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from bsm.backbone import build_backbone
from bsm.configs.instance import MaskRCNNConfig
from bsm.configs.shared import FpnBackboneConfig
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


class Detector(nn.Module):
    """A transformer as a backbone, and a head."""

    def __init__(self, *, freeze_at: int = 0) -> None:
        super().__init__()
        self.config = MaskRCNNConfig(
            backbone=FpnBackboneConfig(name="test_vit", freeze_at=freeze_at)
        )
        self.trunk, _ = build_backbone(self.config.backbone, allow_plain=True)
        self.head = nn.Linear(64, 2)


def rules(model: nn.Module, **changes: object) -> dict[str, tuple[float, float]]:
    """Return learning rate and weight decay by parameter, after an update at a rate of 1."""
    optimizer = build_optimizer(model, optim=replace(OPTIM, **changes))
    optimizer.update(lr=1.0, gradient_norm=torch.tensor(0.0))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_a_backbone_learns_slower_and_its_first_layers_the_slowest():
    model = Detector()
    found = rules(model, backbone_lr_factor=0.5, layer_decay=0.8)
    assert found.keys() == dict(model.named_parameters()).keys()
    assert found["head.weight"] == found["head.bias"] == (1.0, 1e-4)
    for block in range(6):
        rate, decay = found[f"trunk.model.blocks.{block}.mlp.fc1.weight"]
        assert rate == pytest.approx(0.5 * 0.8 ** (6 - block))
        assert decay == 1e-4
        assert found[f"trunk.model.blocks.{block}.norm1.bias"][1] == 0.0
    assert found["trunk.model.pos_embed"] == (pytest.approx(0.5 * 0.8**7), 1e-4)
    frozen = rules(Detector(freeze_at=5), layer_decay=0.8)
    assert frozen == {"head.weight": (1.0, 1e-4), "head.bias": (1.0, 1e-4)}


def test_biases_and_positions_are_spared_decay_on_request():
    found = rules(Detector(), decay_biases=False)
    assert {rate for rate, _ in found.values()} == {1.0}
    decayed = {name for name, (_, decay) in found.items() if decay}
    assert "head.weight" in decayed
    assert "trunk.model.patch_embed.proj.weight" in decayed
    assert not decayed & {"trunk.model.pos_embed", "trunk.model.cls_token", "head.bias"}
    assert not any(name.endswith("bias") or "norm" in name for name in decayed)


def test_a_checkpoint_of_an_earlier_version_has_no_scales():
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    saved = build_optimizer(model, optim=OPTIM).state_dict()
    for group in saved["param_groups"]:
        del group["lr_scale"]
    optimizer = build_optimizer(model, optim=OPTIM)
    optimizer.load_state_dict(saved)
    optimizer.update(lr=0.25, gradient_norm=torch.tensor(0.0))
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-4, 0.0]
