"""Targets of RoIs: the same object on a grid, at points, from the field or from masks."""

import pytest
import torch
from torch.nn import functional as F

from bsm.configs.shared import TargetConfig
from bsm.instance.roi import read_points
from bsm.instance.roi_targets import (
    MaskRois,
    make_grid_targets,
    make_point_targets,
    to_image_pixels,
)
from bsm.points import make_cell_centers
from tests.bsm.synthetic import shapes_batch


def rois_of(targets, shift=0.0):
    n, t = targets.valid.shape
    image = torch.arange(n).repeat_interleave(t)
    boxes = targets.boxes_xyxy.flatten(0, 1) + shift
    return MaskRois(
        torch.cat((image[:, None].float(), boxes), dim=1),
        targets.category_index.flatten(),
        torch.arange(t).repeat(n),
        torch.ones(n * t),
        torch.arange(t).repeat(n),
    )


@pytest.mark.parametrize("margin", [-2.0, 10.0])
def test_points_of_a_feature_are_read_bilinear_with_zeros_outside(margin: float):
    generator = torch.Generator().manual_seed(0)
    feature = torch.randn(2, 5, 16, 20, generator=generator, requires_grad=True)
    image = torch.tensor([1, 0, 1])
    extent = torch.tensor([80.0, 64.0]) + 2 * margin
    pixels = torch.rand(3, 200, 2, generator=generator) * extent - margin
    grid = 2 * pixels / (4 * torch.tensor([20.0, 16.0])) - 1
    expected = F.grid_sample(feature[image], grid[:, None], align_corners=False)[:, :, 0]
    found = read_points(feature, image, pixels)
    assert torch.allclose(found, expected, atol=1e-4)
    weight = torch.randn(found.shape, generator=generator)
    (mine,) = torch.autograd.grad((found * weight).sum(), feature, retain_graph=True)
    (theirs,) = torch.autograd.grad((expected * weight).sum(), feature)
    assert torch.allclose(mine, theirs, atol=1e-4)


def test_both_sources_agree_at_points():
    _, _, targets = shapes_batch()
    rois = rois_of(targets, shift=1.5)
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(len(rois.rois), 200, 2, generator=generator)
    field, roi = (
        make_point_targets(rois, targets, points, config=TargetConfig(source=source))
        for source in ("field", "roi")
    )
    assert (field - roi).abs().mean() < 0.03
    assert ((roi > 0) & (roi < 1)).any()  # soft at the outline
    outside = make_point_targets(rois, targets, points + 5.0, config=TargetConfig())
    assert not outside.any()


def test_points_read_every_pixel_of_whole_masks():
    _, _, targets = shapes_batch()
    generator = torch.Generator().manual_seed(0)
    # Finer than any field: every pixel is drawn on its own.
    noise = torch.randint(0, 2, targets.masks.shape, generator=generator).to(torch.uint8)
    boxes = torch.tensor([8.0, 8.0, 40.0, 40.0]).expand_as(targets.boxes_xyxy)
    targets = targets._replace(masks=noise, boxes_xyxy=boxes)
    rois = rois_of(targets)
    points = make_cell_centers((32, 32), device=boxes.device).expand(len(rois.rois), -1, -1)
    found = make_point_targets(rois, targets, points, config=TargetConfig(source="roi"))
    expected = noise[:, :, 8:40, 8:40].float().flatten(0, 1).flatten(1)
    assert torch.allclose(found, expected, atol=1e-4)


def test_masks_of_another_size_than_the_input_give_the_same_targets():
    _, _, targets = shapes_batch()
    rois, config = rois_of(targets, shift=1.5), TargetConfig(source="roi")
    points = make_cell_centers((28, 28), device=rois.rois.device).expand(len(rois.rois), -1, -1)
    wanted = make_grid_targets(rois, targets, config=config, side=28)
    soft = make_point_targets(rois, targets, points, config=config)
    # The input is enlarged, by other factors for x and y; the masks are as they were.
    factor = torch.tensor([2.0, 1.5])
    enlarged = torch.cat([rois.rois[:, :1], rois.rois[:, 1:] * factor.repeat(2)], dim=1)
    rois = rois._replace(rois=enlarged)
    targets = targets._replace(mask_scale_xy=(1 / factor).expand(*targets.valid.shape, 2))
    found = make_grid_targets(rois, targets, config=config, side=28)
    for a, b in zip(found, wanted, strict=True):
        assert (a != b).float().mean() < 1e-3
    found_soft = make_point_targets(rois, targets, points, config=config)
    assert torch.allclose(found_soft, soft, atol=1e-4)


def test_a_mirrored_object_is_mirrored():
    _, _, targets = shapes_batch()
    rois = rois_of(targets, shift=2.0)
    points = make_cell_centers((28, 28), device=rois.rois.device).expand(len(rois.rois), -1, -1)
    plain = make_point_targets(rois, targets, points, config=TargetConfig())
    frame = targets.field_frame_xyxy.clone()
    frame[..., 0::2] = 64 - frame[..., 0::2]
    boxes = rois.rois.clone()
    boxes[:, 1], boxes[:, 3] = 64 - rois.rois[:, 3], 64 - rois.rois[:, 1]
    mirrored = make_point_targets(
        rois._replace(rois=boxes),
        targets._replace(field_frame_xyxy=frame),
        points,
        config=TargetConfig(),
    )
    flipped = mirrored.view(-1, 28, 28).flip(-1).flatten(1)
    assert torch.allclose(flipped, plain, atol=1e-3)


def test_points_and_grid_agree_inside_and_outside():
    _, _, targets = shapes_batch()
    rois = rois_of(targets)
    points = make_cell_centers((28, 28), device=rois.rois.device).expand(len(rois.rois), -1, -1)
    soft = make_point_targets(rois, targets, points, config=TargetConfig()).view(-1, 28, 28)
    mask = make_grid_targets(rois, targets, config=TargetConfig(), side=28).mask
    assert ((soft > 0.5).float() - mask).abs().mean() < 0.01
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0]])
    assert to_image_pixels(boxes, torch.tensor([[[0.5, 0.25]]])).tolist() == [[[20.0, 30.0]]]
