"""Losses have their published values, ignore empty slots, and are zero without real rois."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from bsm.configs.shared import LossWeights
from bsm.field import MaskTargets
from bsm.losses import (
    SqueezeLogits,
    band_loss,
    bce_loss,
    dice_loss,
    squeeze_losses,
    weighted_bce_loss,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "losses.json"


def inputs(rois=3, side=7):
    """Make fixed logits and targets from a formula, independent of random generators."""
    at = torch.arange(4 * rois * side * side, dtype=torch.float64).view(4, rois, side, side)
    logits = (3 * torch.sin(0.7 * at + 0.1 * at.sqrt())).float()
    targets = (torch.cos(0.31 * at) > 0.4).float()
    return SqueezeLogits(*logits.clone().requires_grad_().unbind(0)), MaskTargets(*targets)


def test_losses_are_the_golden_ones():
    logits, targets = inputs()
    losses = squeeze_losses(logits, targets, weights=torch.tensor([1.0, 0.0, 1.0]))
    golden = json.loads(GOLDEN.read_text())
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(golden, abs=1e-5)


def test_losses_follow_their_formulas():
    logits, targets = inputs()
    x = [t.detach().double().numpy() for t in logits]
    t = [t.double().numpy() for t in targets]

    def bce(x, t):
        return (np.log1p(np.exp(-abs(x))) + np.maximum(x, 0) - x * t).mean()

    def dice(x, t):
        p = 1 / (1 + np.exp(-x))
        both, total = (p * t).sum((1, 2)), p.sum((1, 2)) + t.sum((1, 2))
        return (1 - (2 * both + 1) / (total + 1)).mean()

    want = {
        "loss_mask": bce(x[0], t[0]),
        "loss_boundary": bce(x[1], t[1]) + dice(x[1], t[1]),
        "loss_contraction": dice(x[2], t[2]),
        "loss_expansion": dice(x[3], t[3]),
    }
    losses = squeeze_losses(logits, targets)
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(want, abs=1e-6)


def test_weighted_cross_entropy_gives_a_bands_cells_more_weight():
    logits = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(0))
    targets = torch.zeros(2, 6, 6)
    targets[0, :2] = 1  # 12 of 36: each has weight 2
    targets[1, 0, 0] = 1  # 1 of 36: weight 20, not 35
    cells = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    up = torch.tensor([2.0, 20.0])[:, None, None]
    expected = torch.where(targets > 0, up * cells, cells).mean()
    assert weighted_bce_loss(logits, targets).item() == pytest.approx(expected.item(), rel=1e-5)
    assert weighted_bce_loss(logits, torch.zeros(2, 6, 6)).isfinite()


def test_bands_use_the_configured_loss():
    logits, targets = inputs()
    a, b = logits.contraction, targets.contraction
    bce, weighted, dice = bce_loss(a, b), weighted_bce_loss(a, b), dice_loss(a, b)
    expected = {
        "bce": bce,
        "weighted_bce": weighted,
        "dice": dice,
        "bce_dice": bce + dice,
        "weighted_bce_dice": weighted + dice,
    }
    default = squeeze_losses(logits, targets)
    for kind, loss in expected.items():
        assert band_loss(a, b, kind=kind).item() == pytest.approx(loss.item())
        losses = squeeze_losses(logits, targets, band=kind)
        assert losses["loss_contraction"].item() == pytest.approx(loss.item())
        assert losses["loss_boundary"] == default["loss_boundary"]


def test_a_branch_that_is_left_out_has_no_loss():
    logits, targets = inputs()
    losses = squeeze_losses(logits._replace(boundary=None, expansion=None), targets)
    assert set(losses) == {"loss_mask", "loss_contraction"}


def test_dice_of_an_empty_prediction_and_target_is_zero():
    nothing = torch.full((2, 5, 5), -200.0)
    assert dice_loss(nothing, torch.zeros(2, 5, 5)) == 0
    assert dice_loss(-nothing, torch.ones(2, 5, 5)) == 0


def test_empty_slots_change_nothing():
    logits, targets = inputs()
    alone = squeeze_losses(logits, targets)
    padding = torch.full((2, 7, 7), 5.0)
    padded = squeeze_losses(
        SqueezeLogits(*(torch.cat([x, padding]) for x in logits)),
        MaskTargets(*(torch.cat([t, torch.zeros(2, 7, 7)]) for t in targets)),
        weights=torch.tensor([1.0, 1, 1, 0, 0]),
    )
    for name, loss in alone.items():
        assert padded[name].item() == pytest.approx(loss.item(), abs=1e-6)


@pytest.mark.parametrize("rois", [0, 4])
def test_without_a_real_roi_losses_are_zero_and_so_are_their_gradients(rois):
    leaf = torch.randn(4, rois, 7, 7, requires_grad=True)
    losses = squeeze_losses(
        SqueezeLogits(*leaf.unbind(0)),
        MaskTargets(*torch.ones(4, rois, 7, 7)),
        weights=torch.zeros(rois),
    )
    assert [loss.item() for loss in losses.values()] == [0, 0, 0, 0]
    sum(losses.values()).backward()
    assert leaf.grad is not None
    assert not leaf.grad.any()


def test_each_weight_scales_its_own_loss():
    logits, targets = inputs()
    plain = squeeze_losses(logits, targets)
    scale = {"mask": 2.0, "boundary": 3.0, "contraction": 0.5, "expansion": 0.0}
    scaled = squeeze_losses(logits, targets, loss_weights=LossWeights(**scale))
    for name, factor in scale.items():
        assert scaled[f"loss_{name}"].item() == pytest.approx(factor * plain[f"loss_{name}"].item())


def test_every_loss_trains_its_own_logits():
    logits, targets = inputs()
    losses = squeeze_losses(logits, targets)
    for loss, own in zip(losses.values(), logits, strict=True):
        (grad,) = torch.autograd.grad(loss, own, retain_graph=True)
        assert grad.flatten(1).any(dim=1).all()


def test_half_precision_logits_are_summed_in_float32():
    logits = torch.full((1, 112, 112), 3.0)
    targets = torch.ones(1, 112, 112)
    for loss in (bce_loss, dice_loss):
        half = loss(logits.bfloat16(), targets)
        assert half.dtype == torch.float32
        assert half.item() == pytest.approx(loss(logits, targets).item(), abs=1e-6)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_losses_never_sync_with_the_host(device):
    # Fake tensors raise if the host reads a value; torch runs backward through fake CUDA tensors
    # only with a CUDA device.
    with FakeTensorMode(), torch.device(device):
        leaf = torch.zeros(4, 6, 28, 28, requires_grad=True)
        losses = squeeze_losses(
            SqueezeLogits(*leaf.unbind(0)),
            MaskTargets(*torch.zeros(4, 6, 28, 28)),
            weights=torch.ones(6),
            loss_weights=LossWeights(boundary=2.0),
        )
        if device == "cpu":
            sum(losses.values()).backward()
    assert {loss.device.type for loss in losses.values()} == {device}
