import pytest
import torch
from torchvision.ops import roi_align

from bsm.instance.roi_align import align_rois


@pytest.mark.parametrize(("height", "width"), [(32, 24), (17, 30), (80, 90)])
@pytest.mark.parametrize("side", [7, 28])
def test_values_and_gradient_are_torchvisions(height: int, width: int, side: int):
    generator = torch.Generator().manual_seed(side)
    feature = torch.randn(3, 6, height, width, generator=generator).requires_grad_()
    size = 4 * torch.exp(torch.randn(50, 2, generator=generator) * 1.5)
    start = torch.rand(50, 2, generator=generator) * torch.tensor([width * 4.6, height * 4.6]) - 20
    # Images 0 and 2 only: one without any RoI has no gradient.
    image = 2 * torch.randint(0, 2, (50, 1), generator=generator).float()
    rois = torch.cat((image, start, start + size), dim=1)
    rois[0, 1:] = 0.0  # nothing
    rois[1, 1:] = torch.tensor([-900.0, -900.0, -800.0, -850.0])  # far outside
    rois[2, 1:] = torch.tensor([0.0, 0.0, width * 4.0, height * 4.0])  # everything
    expected = roi_align(feature, rois, side, 0.25, sampling_ratio=0, aligned=True)
    pooled = align_rois(feature, rois, side=side, stride=4)
    assert torch.equal(pooled, expected)
    weight = torch.randn(expected.shape, generator=generator)
    (wanted,) = torch.autograd.grad((expected * weight).sum(), feature)
    (got,) = torch.autograd.grad((pooled * weight).sum(), feature)
    assert wanted.abs().max() > 1
    assert torch.allclose(got, wanted, atol=2e-4)
    assert got[1].eq(0).all()


def test_no_rois():
    feature = torch.randn(1, 3, 8, 8, requires_grad=True)
    pooled = align_rois(feature, torch.zeros(0, 5), side=7, stride=4)
    assert pooled.shape == (0, 3, 7, 7)
    pooled.sum().backward()
    assert feature.grad is not None
    assert feature.grad.eq(0).all()
