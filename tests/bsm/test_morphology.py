"""The exact reference: targets from masks, and masks cropped from images."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bsm.morphology import crop_masks, targets_from_masks


def test_bands_of_a_square_are_the_frames_around_its_outline():
    mask = torch.zeros(1, 12, 12, dtype=torch.uint8)
    mask[:, 3:9, 3:9] = 1
    targets = targets_from_masks(mask, kernel_size=5, unite_boundary=False)
    outer, inner, ring = torch.zeros(3, 12, 12).unbind(0)
    outer[1:11, 1:11] = 1
    inner[5:7, 5:7] = 1
    ring[4:8, 4:8] = 1
    square = mask[0].float()
    assert torch.equal(targets.contraction[0], outer - square)
    assert torch.equal(targets.expansion[0], square - inner)
    assert torch.equal(targets.boundary[0], square - ring)
    united = targets_from_masks(mask, kernel_size=5, unite_boundary=True)
    assert torch.equal(united.contraction[0], outer - ring)
    assert torch.equal(united.expansion[0], square - inner)


def test_the_border_of_a_roi_makes_boundary_but_does_not_erode():
    targets = targets_from_masks(torch.ones(1, 28, 28), kernel_size=5, unite_boundary=False)
    assert [int(t.sum()) for t in targets] == [784, 108, 0, 0]


def test_an_even_kernel_raises_with_its_neighbors():
    with pytest.raises(ValueError, match=r"kernel_size 4: .* Use 3 or 5"):
        targets_from_masks(torch.ones(1, 4, 4), kernel_size=4, unite_boundary=True)


def test_each_roi_is_cropped_from_its_own_image_and_slot():
    masks = torch.zeros(2, 3, 20, 20, dtype=torch.uint8)
    masks[1, 2, 4:12, 6:10] = 1
    boxes = torch.tensor([[4.0, 4.0, 12.0, 12.0], [4.0, 4.0, 12.0, 12.0]])
    cut = crop_masks(masks, boxes, torch.tensor([1, 0]), torch.tensor([2, 1]), side=8)
    want = np.zeros((8, 8), np.float32)
    want[:, 2:6] = 1
    assert np.array_equal(cut[0].numpy(), want)
    assert not cut[1].any()


def test_half_a_cell_counts_as_inside():
    masks = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    masks[0, 0, :, :2] = 1
    zero = torch.zeros(1, dtype=torch.int64)
    cut = crop_masks(masks, torch.tensor([[1.0, 0.0, 3.0, 4.0]]), zero, zero, side=1)
    assert cut.item() == 1


@pytest.mark.parametrize("rois", [0, 5])
def test_images_without_objects_give_empty_masks(rois):
    index = torch.zeros(rois, dtype=torch.int64)
    cut = crop_masks(torch.zeros(2, 0, 9, 9), torch.zeros(rois, 4), index, index, side=14)
    assert cut.shape == (rois, 14, 14)
    assert not cut.any()
    targets = targets_from_masks(cut, kernel_size=5, unite_boundary=True)
    assert {t.shape for t in targets} == {(rois, 14, 14)}


def test_the_roi_source_runs_on_the_gpu_without_a_host_sync():
    with FakeTensorMode(), torch.device("cuda"):
        masks = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
        index = torch.zeros(4, dtype=torch.int64)
        cut = crop_masks(masks, torch.rand(4, 4), index, index, side=28)
        targets = targets_from_masks(cut, kernel_size=5, unite_boundary=True)
    assert {(t.device.type, t.shape) for t in targets} == {("cuda", (4, 28, 28))}
