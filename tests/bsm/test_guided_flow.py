"""The displacement to the outline is the shortest, and supervises each flow in its own band."""

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bsm.configs.shared import GuidedFlowConfig
from bsm.deform import flow_warp
from bsm.guided_flow import guided_flow_losses, make_flow_targets, signed_distance
from bsm.squeeze import Flows


def blobs(count=12, side=28):
    noise = torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    return (F.interpolate(noise, size=side, mode="bicubic")[:, 0] > 0.5).float()


def disk(radius=8.0, side=28):
    at = torch.arange(side) + 0.5 - side / 2
    return ((at[:, None] ** 2 + at**2) < radius**2).float()[None]


def test_the_distance_is_the_exact_euclidean_one():
    masks = blobs()
    for mask, distance in zip(masks, signed_distance(masks), strict=True):
        inside = mask.numpy().astype(np.uint8)
        to_outside, to_inside = (
            cv2.distanceTransform(each, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) - 0.5
            for each in (inside, 1 - inside)
        )
        expected = np.where(inside, to_outside, -to_inside)
        assert np.allclose(distance.numpy(), expected, atol=1e-3)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_mask_without_an_outline_supervises_no_flow(value):
    masks = torch.full((2, 28, 28), value)
    assert (signed_distance(masks).abs() > 28).all()
    targets = make_flow_targets(masks, reach=5.0)
    assert targets.displacement.isfinite().all()
    assert not targets.contraction.any()
    assert not targets.expansion.any()


def test_the_displacement_across_a_straight_outline_is_exact():
    masks = torch.zeros(1, 28, 28)
    masks[:, :, 12:] = 1  # the outline is between columns 5 and 6 of the 14 x 14 feature
    targets = make_flow_targets(masks, reach=2.0)
    columns = torch.arange(14) + 0.5
    middle = targets.displacement[0, :, 7]
    near = (columns - 6).abs() < 2
    assert torch.allclose(middle[0][near], (6 - columns)[near], atol=1e-5)
    assert torch.allclose(middle[1][near], torch.zeros(int(near.sum())), atol=1e-6)
    assert targets.contraction[0, 7].tolist() == ((columns < 6) & near).float().tolist()
    assert targets.expansion[0, 7].tolist() == ((columns > 6) & near).float().tolist()


def test_following_the_displacement_leads_to_the_outline():
    masks = disk()
    targets = make_flow_targets(masks, reach=2.0)
    distance = F.avg_pool2d(signed_distance(masks)[:, None], 2) / 2
    reached = flow_warp(distance, 2 * targets.displacement)[0, 0]
    for band in (targets.contraction[0] > 0, targets.expansion[0] > 0):
        assert band.sum() > 20
        assert distance[0, 0][band].abs().mean() > 0.7
        assert reached[band].abs().mean() < 0.12
    # From outside inwards, from inside outwards.
    x, y = (targets.displacement[0, axis] for axis in (0, 1))
    at = torch.arange(14) + 0.5 - 7
    outwards = x * at + y * at[:, None]
    assert (outwards[targets.contraction[0] > 0] < 0).all()
    assert (outwards[targets.expansion[0] > 0] > 0).all()


def test_exact_flows_have_no_loss_and_others_only_in_their_band():
    targets = make_flow_targets(blobs(), reach=2.0)
    config = GuidedFlowConfig(weight=0.5)
    right = Flows(2 * targets.displacement, 2 * targets.displacement)
    assert all(loss == 0 for loss in guided_flow_losses(right, targets, config=config).values())
    wrong = right.contraction.clone().requires_grad_()
    losses = guided_flow_losses(right._replace(contraction=wrong + 6.0), targets, config=config)
    # Smooth L1 of 3 cells, in both coordinates, times the weight.
    assert losses["loss_flow_contraction"].item() == pytest.approx(0.5 * 2.5, rel=1e-4)
    assert losses["loss_flow_expansion"] == 0
    losses["loss_flow_contraction"].backward()
    touched = wrong.grad.abs().sum(1) > 0
    assert torch.equal(touched, targets.contraction > 0)


def test_empty_slots_and_missing_flows():
    masks = blobs(4)
    targets = make_flow_targets(masks, reach=2.0)
    flow = torch.randn(4, 2, 14, 14, generator=torch.Generator().manual_seed(1))
    config = GuidedFlowConfig(weight=1.0)
    alone = guided_flow_losses(
        Flows(flow[:3], flow[:3]), type(targets)(*(t[:3] for t in targets)), config=config
    )
    padded = guided_flow_losses(
        Flows(flow, flow), targets, config=config, weights=torch.tensor([1.0, 1, 1, 0])
    )
    for name, loss in alone.items():
        assert padded[name].item() == pytest.approx(loss.item(), rel=1e-5)
    nothing = guided_flow_losses(Flows(flow, flow), targets, config=config, weights=torch.zeros(4))
    assert all(loss == 0 for loss in nothing.values())
    one = guided_flow_losses(Flows(None, flow), targets, config=config)
    assert set(one) == {"loss_flow_expansion"}
    assert guided_flow_losses(Flows(None, None), targets, config=config) == {}


def test_half_precision_flows_are_compared_in_float32():
    targets = make_flow_targets(blobs(), reach=2.0)
    flow = (2 * targets.displacement).bfloat16()
    losses = guided_flow_losses(Flows(flow, flow), targets, config=GuidedFlowConfig(weight=1.0))
    assert all(loss.dtype == torch.float32 for loss in losses.values())
