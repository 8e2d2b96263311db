"""Crops of photos and masks, and the way back."""

import pytest
import torch
from torch.nn import functional as F

from bsm.refine.crops import Window, boxes_to_crops, crop, cut_window, paste_window, round_crops


def test_crops_hold_their_boxes_and_average_the_pixels_of_a_cell():
    boxes = torch.tensor([[10.0, 20.0, 50.0, 40.0], [0.0, 0.0, 2.0, 2.0]])
    crops = boxes_to_crops(boxes, scale=1.5)
    torch.testing.assert_close(crops[0], torch.tensor([0.0, 0.0, 60.0, 60.0]))
    assert (crops[1, 2:] - crops[1, :2] == 16).all(), "a speck is shown with its surroundings"
    stripes = (torch.arange(64) % 2).float().expand(1, 1, 64, 64).contiguous()
    whole = torch.tensor([[0.0, 0.0, 64.0, 64.0]])
    reduced = crop(stripes, whole, torch.zeros(1, dtype=torch.long), side=16)
    torch.testing.assert_close(reduced, torch.full((1, 1, 16, 16), 0.5))


WINDOWS = [Window(10, 5, 40), Window(-9, -20, 50), Window(70, 40, 64), Window(-30, -30, 160)]


@pytest.mark.parametrize("window", WINDOWS)
def test_a_window_is_cut_as_a_crop_is(window: Window):
    photo = torch.randint(0, 256, (3, 80, 100), generator=torch.Generator().manual_seed(0))
    photo = F.avg_pool2d(photo.float(), 9, stride=1, padding=4)
    mask = torch.zeros(80, 100, dtype=torch.bool)
    mask[20:50, 30:80] = True
    x, y, extent = window
    crops = torch.tensor([[x, y, x + extent, y + extent]], dtype=torch.float32)
    planes = torch.cat([photo, mask[None] * 255.0])[None]
    wanted = crop(planes, crops, torch.zeros(1, dtype=torch.long), side=64)[0]
    for dtype in (torch.float32, torch.uint8):
        found = cut_window(photo.to(dtype), mask, window, side=64)
        assert found.dtype == torch.float32
        # They average with other weights where the photo is reduced, and differ at its edge.
        assert (found - wanted).abs().mean() < 3
        same = (found[3] >= 127.5) == (wanted[3] >= 127.5)
        assert same.float().mean() > 0.995


@pytest.mark.parametrize("window", WINDOWS)
def test_a_window_is_pasted_where_it_was_cut(window: Window):
    mask = torch.zeros(80, 100, dtype=torch.bool)
    mask[12:30, 20:40], mask[60:, 90:] = True, True
    cells = cut_window(torch.zeros(3, 80, 100), mask, window, side=128)
    pasted = mask.clone()
    paste_window(cells[3] - 127.5, pasted, window)
    assert (pasted != mask).float().mean() < 0.003
    paste_window(torch.full((128, 128), -1.0), pasted, window)
    assert pasted.any(), "a mask that would vanish stays"


def test_rounded_crops_hold_the_pixels_of_their_boxes():
    corner = torch.randint(0, 60, (200, 2), generator=torch.Generator().manual_seed(0)).float()
    boxes = torch.cat([corner, corner + 1 + corner.flip(0)], dim=1)
    for scale in (1.0, 1.3):
        crops = boxes_to_crops(boxes, scale=scale)
        for (x0, y0, x1, y1), window in zip(boxes.tolist(), round_crops(crops), strict=True):
            left, top, extent = window
            assert left <= x0 < x1 <= left + extent
            assert top <= y0 < y1 <= top + extent
            assert extent <= max(scale * max(x1 - x0, y1 - y0) + 1, 16)
