"""Color jitter matches torchvision, ignores padding, and does not wait for the device."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.transforms.v2 import functional as tv

from pipeline.training.color_jitter import adjust_colors
from tests.no_host_tensors import ForbidHostTensors

UNCHANGED = [1.0, 1.0, 1.0, 0.0]


def make_images(count: int = 2, size_hw: tuple[int, int] = (16, 20)) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randint(0, 256, (count, 3, *size_hw), dtype=torch.uint8)


def make_sizes(count: int, size_hw: tuple[int, int]) -> torch.Tensor:
    return torch.tensor([size_hw] * count)


def test_factors_of_one_keep_the_image():
    images = make_images()
    changed = adjust_colors(images, make_sizes(2, (16, 20)), torch.tensor([UNCHANGED] * 2))
    assert changed.dtype == torch.uint8
    assert torch.equal(changed, images)


@pytest.mark.parametrize(
    ("column", "values", "reference"),
    [
        (0, (0.6, 1.4), tv.adjust_brightness),
        (2, (0.5, 1.5), tv.adjust_saturation),
        (3, (-0.1, 0.2), tv.adjust_hue),
    ],
)
def test_each_adjustment_matches_torchvision(column, values, reference):
    images = make_images()
    colors = torch.tensor([UNCHANGED] * 2)
    colors[:, column] = torch.tensor(values)
    changed = adjust_colors(images, make_sizes(2, (16, 20)), colors)
    for one, image, value in zip(changed, images, values, strict=True):
        expected = 255 * reference(image.float() / 255, value)
        assert (one.float() - expected).abs().max() <= 0.51


def test_padding_does_not_change_the_result():
    """Contrast scales around the mean of the image without its padding."""
    image = make_images(1)
    padded = torch.zeros(1, 3, 32, 64, dtype=torch.uint8)
    padded[:, :, :16, :20] = image
    colors = torch.tensor([[1.2, 0.5, 0.8, 0.05]])
    alone = adjust_colors(image, make_sizes(1, (16, 20)), colors)
    beside = adjust_colors(padded, make_sizes(1, (16, 20)), colors)
    assert torch.equal(beside[:, :, :16, :20], alone)
    assert not beside[:, :, 16:].any()
    assert not beside[:, :, :, 20:].any()
    flat = adjust_colors(image, make_sizes(1, (16, 20)), torch.tensor([[1.0, 0.0, 1.0, 0.0]]))
    assert (flat.float() - image.float().mean()).abs().max() <= 0.51


def test_jitter_does_not_wait_for_the_device():
    with FakeTensorMode(), torch.device("cuda"):
        images = torch.empty(2, 3, 32, 32, dtype=torch.uint8)
        sizes_hw, colors = torch.empty(2, 2, dtype=torch.int64), torch.empty(2, 4)
        with ForbidHostTensors():
            changed = adjust_colors(images, sizes_hw, colors)
    assert (changed.device.type, changed.dtype) == ("cuda", torch.uint8)
