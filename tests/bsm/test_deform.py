"""The flow warp reads where its flow points; a zero flow leaves a feature unchanged."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from bsm.deform import DynamicGraph, FlowWarp, ModulatedDeformConv, flow_warp

SIZES = pytest.mark.parametrize("size_hw", [(14, 14), (7, 13), (28, 28), (1, 1), (33, 130)])


@SIZES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_zero_flow_is_the_identity_bit_for_bit(size_hw, dtype):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size_hw).to(dtype)
    assert torch.equal(flow_warp(x, torch.zeros(2, 2, *size_hw)), x)


@SIZES
def test_a_warp_and_its_gradients_equal_deform_conv2d(size_hw):
    torch.manual_seed(0)
    x = torch.randn(3, 4, *size_hw, requires_grad=True)
    pixels = (3 * torch.randn(3, 2, *size_hw)).requires_grad_()
    upstream = torch.randn(3, 4, *size_hw)
    warped = flow_warp(x, 2 * pixels)
    identity = torch.eye(4)[:, :, None, None]
    oracle = deform_conv2d(x, pixels.flip(1), identity)  # its offsets are (y, x)
    assert torch.allclose(warped, oracle, atol=5e-5)
    mine = torch.autograd.grad((warped * upstream).sum(), [x, pixels])
    theirs = torch.autograd.grad((oracle * upstream).sum(), [x, pixels])
    assert torch.allclose(mine[0], theirs[0], atol=1e-4)
    assert torch.allclose(mine[1], theirs[1], atol=1e-3)


def test_a_flow_of_two_reads_the_next_cell_and_zero_beyond_the_border():
    x = torch.arange(12.0).view(1, 1, 3, 4) + 1
    flow = torch.zeros(1, 2, 3, 4)
    flow[:, 0] = 2
    assert torch.equal(flow_warp(x, flow)[..., :-1], x[..., 1:])
    assert not flow_warp(x, flow)[..., -1].any()
    flow = torch.zeros(1, 2, 3, 4)
    flow[:, 1] = -2
    assert torch.equal(flow_warp(x, flow)[..., 1:, :], x[..., :-1, :])


def test_legacy_darkens_the_border_as_the_released_code_does():
    warped = flow_warp(torch.ones(1, 1, 14, 14), torch.zeros(1, 2, 14, 14), legacy=True)[0, 0]
    assert warped[0, 0] == pytest.approx(0.25, abs=1e-5)
    assert warped[0, 6] == pytest.approx(0.5, abs=1e-5)
    assert warped[6, 6] == pytest.approx(1.0, abs=1e-5)


def test_legacy_samples_on_the_released_grid():
    torch.manual_seed(0)
    x, flow = torch.randn(2, 3, 9, 14), torch.randn(2, 2, 9, 14)
    y, z = torch.meshgrid(torch.linspace(-1, 1, 9), torch.linspace(-1, 1, 14), indexing="ij")
    grid = torch.stack([z, y], -1) + flow.permute(0, 2, 3, 1) / torch.tensor([14.0, 9.0])
    want = F.grid_sample(x, grid, align_corners=False)
    assert torch.allclose(flow_warp(x, flow, legacy=True), want, atol=1e-5)


@pytest.mark.parametrize("legacy", [False, True])
def test_zero_rois_run_forward_and_backward(legacy):
    x = torch.zeros(0, 4, 14, 14, requires_grad=True)
    flow = torch.zeros(0, 2, 14, 14, requires_grad=True)
    flow_warp(x, flow, legacy=legacy).sum().backward()
    assert x.grad.shape == x.shape
    assert flow.grad.shape == flow.shape


@pytest.mark.parametrize("legacy", [False, True])
def test_the_warp_never_syncs_with_the_host(legacy):
    # Fake tensors raise if the host reads a value; torch runs backward through fake CUDA tensors
    # only with a CUDA device.
    for device in ("cuda", "cpu"):
        with FakeTensorMode(), torch.device(device):
            x = torch.zeros(2, 4, 14, 14, requires_grad=True)
            flow = torch.zeros(2, 2, 14, 14, requires_grad=True)
            warped = flow_warp(x, flow, legacy=legacy)
            if device == "cpu":
                warped.sum().backward()
        assert warped.device.type == device


def test_dcnv2_starts_as_half_a_convolution_and_then_moves_its_taps():
    torch.manual_seed(0)
    tower, roi = torch.randn(2, 6, 9, 9), torch.randn(2, 6, 9, 9)
    warp = ModulatedDeformConv(6)
    plain = F.conv2d(tower, warp.weight, padding=1)
    assert torch.allclose(warp(tower, roi).feature, plain / 2, atol=1e-5)
    torch.nn.init.zeros_(warp.offset.weight)
    with torch.no_grad():
        warp.offset.bias[1:18:2] = 1.0  # all taps one cell to the right
        warp.offset.bias[18:] = 20.0  # with full weight
    moved = F.pad(tower, (0, 2))[..., 1:-1]
    inner = (..., slice(None), slice(1, -2))
    expected = F.conv2d(moved, warp.weight, padding=1)
    assert torch.allclose(warp(tower, roi).feature[inner], expected[inner], atol=1e-4)


def test_dgmn_gathers_with_its_filters():
    torch.manual_seed(0)
    x = torch.randn(2, 64, 14, 14)
    warp = DynamicGraph(64)
    kernel = torch.randn(2, 9 * 7, 14, 14)
    kernel[:, 36:54] = 0  # without offsets it is an unfold
    for dilation in (1, 4, 12):
        patches = F.unfold(x, 3, padding=dilation, dilation=dilation).view(2, 4, 16, 9, 14, 14)
        filters = kernel[:, :36].view(2, 4, 1, 9, 14, 14).softmax(3)
        weights = kernel[:, 54:].view(2, 1, 1, 9, 14, 14).sigmoid()
        expected = (patches * filters * weights).sum(3).flatten(1, 2)
        found = warp._gather(x, kernel, dilation=dilation)
        assert torch.allclose(found, expected, atol=1e-5)


def test_only_the_flow_warp_has_a_flow_and_follows_it():
    torch.manual_seed(0)
    tower, roi = torch.randn(2, 8, 14, 14), torch.randn(2, 8, 14, 14)
    warp = FlowWarp(8, zero_flow=False)
    deformed = warp(tower, roi)
    assert torch.equal(deformed.flow, warp.flow(torch.cat([tower, roi], 1)))
    assert torch.equal(deformed.feature, flow_warp(tower, deformed.flow))
    assert ModulatedDeformConv(8)(tower, roi).flow is None
    assert DynamicGraph(8)(tower, roi).flow is None
