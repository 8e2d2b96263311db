"""Pasting samples the mask at every pixel's center, within a byte budget."""

import math
import weakref

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bsm.instance.paste import paste_masks


def literal_paste(probs, box, size_hw):
    """Sample one pixel at a time, in Python floats."""
    side = len(probs)
    x0, y0, x1, y1 = box
    image = np.zeros(size_hw, np.bool_)
    for row in range(size_hw[0]):
        for column in range(size_hw[1]):
            x = (column + 0.5 - x0) / (x1 - x0) * side - 0.5
            y = (row + 0.5 - y0) / (y1 - y0) * side - 0.5
            left, top = math.floor(x), math.floor(y)
            found = 0.0
            for i, wy in ((top, 1 - (y - top)), (top + 1, y - top)):
                for j, wx in ((left, 1 - (x - left)), (left + 1, x - left)):
                    if 0 <= i < side and 0 <= j < side:
                        found += wy * wx * probs[i][j]
            image[row, column] = found >= 0.5
    return image


def test_every_pixel_is_sampled_at_its_center():
    generator = torch.Generator().manual_seed(0)
    boxes = torch.tensor(
        [
            [3.2, 4.7, 20.1, 15.9],
            [-6.5, -3.0, 9.0, 40.0],  # beyond the image on three sides
            [10.4, 10.4, 11.1, 10.9],  # less than a pixel
            [0.0, 0.0, 30.0, 24.0],
            [60.0, 5.0, 70.0, 9.0],  # not in the image at all
        ]
    )
    probs = torch.rand(len(boxes), 7, 7, generator=generator)
    probs[3] = 1.0
    pasted = list(paste_masks(probs, boxes, size_hw=(24, 30), byte_budget=2**20))
    masks = torch.cat([chunk for _, chunk in pasted])
    assert masks.dtype == torch.bool
    for mask, prob, box in zip(masks, probs.tolist(), boxes.tolist(), strict=True):
        assert np.array_equal(mask.numpy(), literal_paste(prob, box, (24, 30)))
    # The half cell beyond the mask's last centers fades out, but only its corners below one half.
    assert masks[3].sum() == 24 * 30 - 4


def test_a_box_without_extent_shows_nothing():
    boxes = torch.tensor([[5.0, 5.0, 5.0, 9.0], [5.5, 5.5, 5.5, 5.5], [0.0, 0.0, 0.0, 0.0]])
    for _, masks in paste_masks(torch.ones(3, 28, 28), boxes, size_hw=(12, 12), byte_budget=1):
        assert not masks.any()


def test_no_detections_give_no_chunks():
    chunks = paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), size_hw=(9, 9), byte_budget=1)
    assert list(chunks) == []


def test_a_budget_of_zero_raises_at_the_call():
    with pytest.raises(ValueError, match="byte_budget 0"):
        paste_masks(torch.zeros(1, 4, 4), torch.zeros(1, 4), size_hw=(9, 9), byte_budget=0)


class LiveBytes(TorchDispatchMode):
    """Count the bytes of live tensors, and record the peak."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.seen = {}

    def _forget(self, key, size):
        self.now -= size
        self.seen.pop(key, None)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                key = storage._cdata
                if key not in self.seen:
                    size = storage.nbytes()
                    self.seen[key] = weakref.finalize(storage, self._forget, key, size)
                    self.now += size
                    self.most = max(self.most, self.now)
        return result


@pytest.mark.parametrize("megabytes", [2, 8, 64])
def test_chunks_fit_the_budget_and_cover_every_detection(megabytes):
    count, size_hw, budget = 41, (200, 300), megabytes * 2**20
    with FakeTensorMode(), torch.device("cuda"):
        probs, boxes = torch.zeros(count, 28, 28), torch.zeros(count, 4)
        covered = []
        with LiveBytes() as live:
            for chunk, masks in paste_masks(probs, boxes, size_hw=size_hw, byte_budget=budget):
                assert masks.device.type == "cuda"
                assert masks.shape == (chunk.stop - chunk.start, *size_hw)
                covered += range(chunk.start, chunk.stop)
    assert covered == list(range(count))
    small = count * (28 * 28 + 200 + 300) * 4 * 4
    assert live.most <= budget + small
    assert live.most > min(budget, count * 200 * 300 * 13) / 3, "the budget is hardly used"
