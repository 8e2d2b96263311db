import pytest
import torch
from torchvision.ops import batched_nms, nms

from bsm.instance.nms import keep_after_nms, keep_without_sync


def crowded_boxes(n: int, generator: torch.Generator, *, centers: int, spread: float):
    center = torch.rand(centers, 2, generator=generator) * 500
    center = center[torch.randint(0, centers, (n,), generator=generator)]
    center = center + torch.randn(n, 2, generator=generator) * spread
    size = 40 * torch.exp(torch.randn(n, 2, generator=generator) * 0.3)
    return torch.cat((center - size / 2, center + size / 2), dim=1)


@pytest.mark.parametrize("iou_threshold", [0.3, 0.5, 0.7])
@pytest.mark.parametrize(("centers", "spread"), [(400, 40.0), (20, 10.0), (3, 5.0), (1, 25.0)])
def test_both_implementations_are_greedy_nms(iou_threshold: float, centers: int, spread: float):
    generator = torch.Generator().manual_seed(centers)
    boxes = torch.stack(
        [crowded_boxes(600, generator, centers=centers, spread=spread) for _ in range(3)]
    )
    valid = torch.rand(3, 600, generator=generator) > 0.1
    expected = torch.zeros_like(valid)
    for g in range(3):
        index = valid[g].nonzero().squeeze(1)
        score = torch.linspace(1, 0, len(index))
        expected[g, index[nms(boxes[g, index], score, iou_threshold)]] = True
    for function in (keep_after_nms, keep_without_sync):
        keep = function(boxes, valid, iou_threshold=iou_threshold)
        assert torch.equal(keep, expected), function.__name__
    assert expected.sum() < valid.sum()  # something was suppressed


def test_categories_do_not_suppress_each_other():
    generator = torch.Generator().manual_seed(1)
    boxes = crowded_boxes(400, generator, centers=5, spread=8.0)
    category = torch.randint(0, 70, (400,), generator=generator)
    expected = torch.zeros(400, dtype=torch.bool)
    expected[batched_nms(boxes, torch.linspace(1, 0, 400), category, 0.5)] = True
    for function in (keep_after_nms, keep_without_sync):
        keep = function(
            boxes[None],
            torch.ones(1, 400, dtype=torch.bool),
            iou_threshold=0.5,
            category_index=category[None],
        )
        assert torch.equal(keep[0], expected), function.__name__


def test_a_long_chain_of_overlapping_boxes():
    """Each box overlaps only its neighbors, so every second one is kept."""
    start = torch.arange(30.0) * 4
    boxes = torch.stack((start, start * 0, start + 10, start * 0 + 10), dim=1)[None]
    valid = torch.ones(1, 30, dtype=torch.bool)
    keep = keep_without_sync(boxes, valid, iou_threshold=0.4)
    assert torch.equal(keep[0], torch.arange(30) % 2 == 0)
    assert torch.equal(keep, keep_after_nms(boxes, valid, iou_threshold=0.4))


@pytest.mark.parametrize("function", [keep_after_nms, keep_without_sync])
def test_nothing_valid_keeps_nothing(function):
    keep = function(torch.zeros(2, 5, 4), torch.zeros(2, 5, dtype=torch.bool), iou_threshold=0.5)
    assert not keep.any()
