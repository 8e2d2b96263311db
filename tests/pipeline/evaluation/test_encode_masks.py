import numpy as np
import pytest
import torch

from bsm.instance import paste
from pipeline.evaluation.encode_masks import encode_masks, paste_and_encode

SIZE_HW = (61, 83)


def _paste_whole(probs, boxes):
    rows, columns = (torch.arange(side) for side in SIZE_HW)
    return paste._paste(probs[:, None], boxes, rows, columns)


@pytest.mark.parametrize("strip_pixels", [1, 500, 2**17])
def test_strips_encode_what_sampling_every_pixel_gives(monkeypatch, strip_pixels):
    monkeypatch.setattr(paste, "_STRIP_PIXELS", strip_pixels)
    g = torch.Generator().manual_seed(0)
    count = 40
    corners = torch.rand(count, 2, generator=g) * 90 - 20
    boxes = torch.cat([corners, corners + torch.rand(count, 2, generator=g) * 80], dim=1)
    boxes[0] = torch.tensor([0.0, 0.0, SIZE_HW[1], SIZE_HW[0]])
    boxes[1] = torch.tensor([-30.0, -30.0, 130.0, 100.0])  # columns run into each other
    boxes[2, 2] = boxes[2, 0]
    probs = torch.rand(count, 28, 28, generator=g)
    probs[1] = 1.0
    # On the threshold, and less than rounding away from it.
    probs[3:9] = 0.5
    probs[9:20] = 0.5 + 1e-7 * torch.randn(11, 28, 28, generator=g)
    expected = encode_masks(_paste_whole(probs, boxes))
    assert paste_and_encode(probs, boxes, size_hw=SIZE_HW, paste_bytes=1) == expected


def test_no_detections():
    none = paste_and_encode(
        torch.zeros(0, 28, 28), torch.zeros(0, 4), size_hw=SIZE_HW, paste_bytes=1
    )
    assert none == []


def test_masks_of_whole_images_are_encoded_down_the_columns():
    mask = np.zeros((3, 4), bool)
    mask[1:, 2] = True
    (counts,) = encode_masks(torch.from_numpy(mask)[None])
    assert counts == b"723"
