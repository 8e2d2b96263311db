"""The squeeze field gives morphology's targets, exactly on its grid and closely where sampled."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from pycocotools import mask as coco_mask
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from bsm.field import (
    boxes_to_frames,
    field_from_mask,
    mask_to_field,
    sample_field,
    targets_from_distance,
    targets_from_field,
)
from bsm.morphology import crop_masks, targets_from_masks

ODD_KERNELS = range(1, 32, 2)
SIDES = st.integers(1, 24)
NOISE = SIDES.flatmap(lambda side: st_numpy.arrays(np.bool_, (side, side)))


@st.composite
def rectangles(draw):
    """Draw masks with wide insides and outsides, unlike noise."""
    side = draw(SIDES)
    mask = np.full((side, side), draw(st.booleans()))
    for _ in range(draw(st.integers(0, 4))):
        top, left = draw(st.integers(0, side - 1)), draw(st.integers(0, side - 1))
        high, wide = draw(st.integers(1, side)), draw(st.integers(1, side))
        mask[top : top + high, left : left + wide] ^= True
    return mask


def opencv_targets(mask, kernel_size, unite_boundary):
    mask = mask.astype(np.uint8)
    kernel = np.ones((kernel_size, kernel_size), np.uint8)
    laplacian = torch.tensor([[-1.0, -1, -1], [-1, 8, -1], [-1, -1, -1]])[None, None]
    boundary = F.conv2d(torch.tensor(mask)[None, None].float(), laplacian, padding=1)
    boundary = (boundary[0, 0].clamp(min=0) > 0.1).numpy().astype(np.uint8)
    contraction = cv2.dilate(mask, kernel) - mask
    expansion = mask - cv2.erode(mask, kernel)
    if unite_boundary:
        contraction, expansion = contraction | boundary, expansion | boundary
    return mask, boundary, contraction, expansion


@settings(deadline=None, max_examples=30)
@example(np.ones((28, 28), np.bool_), True)
@example(np.zeros((28, 28), np.bool_), False)
@example(np.ones((1, 1), np.bool_), True)
@given(st.one_of(NOISE, rectangles()), st.booleans())
def test_field_targets_equal_morphology_for_every_odd_kernel(mask, unite_boundary):
    masks = torch.from_numpy(mask)[None]
    field = mask_to_field(masks)
    for kernel_size in ODD_KERNELS:
        options = {"kernel_size": kernel_size, "unite_boundary": unite_boundary}
        ours = targets_from_field(field, **options)
        by_kornia = targets_from_masks(masks, **options)
        by_opencv = opencv_targets(mask, kernel_size, unite_boundary)
        for name, mine, kornia, opencv in zip(
            ours._fields, ours, by_kornia, by_opencv, strict=True
        ):
            assert torch.equal(mine, kornia), f"{name}, kernel {kernel_size}: kornia"
            assert np.array_equal(mine[0].numpy(), opencv), f"{name}, kernel {kernel_size}: cv2"


@settings(deadline=None, max_examples=60)
@given(st.one_of(NOISE, rectangles()))
def test_field_is_the_chessboard_distance_to_the_other_side(mask):
    side = len(mask)
    y, x = (axis.ravel() for axis in np.mgrid[:side, :side])
    apart = np.maximum(abs(x[:, None] - x), abs(y[:, None] - y))
    flat = mask.ravel()
    apart = np.where(flat[:, None] != flat, apart, 127).min(axis=1)
    want = np.where(flat, apart, -apart).reshape(side, side)
    assert np.array_equal(mask_to_field(torch.from_numpy(mask)[None])[0].numpy(), want)


def test_far_cells_are_clipped_and_none_is_zero():
    mask = torch.zeros(1, 200, 200, dtype=torch.uint8)
    mask[0, 0, 0] = 1
    field = mask_to_field(mask)
    assert field[0, 0, 0] == 1
    assert field[0, 50, 126] == -126
    assert field[0, 199, 199] == -127
    assert (field != 0).all()


def test_a_full_roi_has_a_boundary_of_108_cells_and_no_band():
    targets = targets_from_field(
        mask_to_field(torch.ones(1, 28, 28)), kernel_size=5, unite_boundary=False
    )
    assert [int(t.sum()) for t in targets] == [784, 108, 0, 0]


@pytest.mark.parametrize("kernel_size", [0, 4, -3, 255])
def test_a_kernel_that_a_field_does_not_support_raises(kernel_size):
    with pytest.raises(ValueError, match=f"kernel_size {kernel_size}: .* 1 to 253"):
        targets_from_field(
            torch.ones(1, 3, 3, dtype=torch.int8), kernel_size=kernel_size, unite_boundary=True
        )
    with pytest.raises(ValueError, match="kernel_size"):
        targets_from_distance(torch.ones(1, 3, 3), kernel_size=kernel_size, unite_boundary=True)


@settings(deadline=None, max_examples=40)
@given(rectangles().filter(lambda mask: len(mask) > 1), st.sampled_from([3, 5, 9]))
def test_sampling_a_field_on_its_own_grid_loses_nothing(mask, kernel_size):
    masks = torch.from_numpy(np.pad(mask, 1))[None]
    field = mask_to_field(masks)
    frame = torch.tensor([[-3.0, 5.0, 40.0, 61.0]])
    s = sample_field(field, frame, frame, side=field.shape[-1])
    sampled = targets_from_distance(s, kernel_size=kernel_size, unite_boundary=True)
    exact = targets_from_field(field, kernel_size=kernel_size, unite_boundary=True)
    for name, ours, want in zip(exact._fields, sampled, exact, strict=True):
        assert torch.equal(ours, want), name


ROI_SHAPES = pytest.mark.parametrize(("wide", "high"), [(64.0, 64.0), (32.0, 64.0), (90.0, 30.0)])


def straight_outline(normal, wide, high):
    """Sample the field of normal . (position - middle) < 0; return samples and expected values."""
    cell = torch.arange(112) + 0.5 - 56
    field = mask_to_field((normal[0] * cell[None, :] + normal[1] * cell[:, None] < 0)[None])
    frame = torch.tensor([[0.0, 0.0, 112.0, 112.0]])
    roi = torch.tensor([[56 - wide / 2, 56 - high / 2, 56 + wide / 2, 56 + high / 2]])
    cell = (torch.arange(28) + 0.5) / 28 - 0.5
    across = normal[0] * wide * cell[None, :] + normal[1] * high * cell[:, None]
    # The least max(|dx|, |dy|) of a step to the outline, in roi cells.
    want = -across / (abs(normal[0]) * wide / 28 + abs(normal[1]) * high / 28)
    return sample_field(field, frame, roi, side=28)[0], want


@ROI_SHAPES
@pytest.mark.parametrize("normal", [(1.0, 0.0), (0.0, -1.0)])
def test_distances_are_counted_in_cells_of_the_roi(normal, wide, high):
    s, want = straight_outline(normal, wide, high)
    assert torch.allclose(s, want, atol=0.02)


@ROI_SHAPES
@pytest.mark.parametrize("normal", [(1.0, 1.0), (-1.0, 0.5), (1.0, -2.0)])
def test_slanted_outlines_are_exact_in_rois_of_any_shape(normal, wide, high):
    s, want = straight_outline(normal, wide, high)
    near = want.abs() < 3
    assert (s - want)[near].abs().mean() < 0.3


def test_a_center_on_the_outline_counts_as_inside_despite_rounding():
    right, left = torch.zeros(2, 1, 112, 112, dtype=torch.uint8).unbind(0)
    right[:, :, 28:] = 1
    left[:, :, :28] = 1
    corners = torch.rand(200, 2, generator=torch.Generator().manual_seed(0)) * 400
    extents = torch.rand(200, 2, generator=torch.Generator().manual_seed(1)) * 200 + 9
    boxes = torch.cat([corners, corners + extents], 1)
    for mask in (right, left):
        field = mask_to_field(mask).expand(200, 112, 112)
        s = sample_field(field, boxes_to_frames(boxes), boxes, side=28)
        # In the object's own box, the center of the fourth cell is between field cells 27 and 28.
        assert (s[:, :, 3] > 0).all()
        assert (s[:, :, 3] < 0.01).all()


def test_a_mirrored_frame_mirrors_the_samples():
    torch.manual_seed(0)
    field = mask_to_field(torch.rand(4, 16, 16) > 0.6)
    frame = torch.tensor([[10.0, 20.0, 74.0, 52.0]]).expand(4, 4)
    rois = torch.tensor([[16.0, 22.0, 64.0, 60.0]]).expand(4, 4)
    plain = sample_field(field, frame, rois, side=14)
    width_px = 100.0
    mirrored = sample_field(
        field,
        torch.stack([width_px - frame[:, 0], frame[:, 1], width_px - frame[:, 2], frame[:, 3]], 1),
        torch.stack([width_px - rois[:, 2], rois[:, 1], width_px - rois[:, 0], rois[:, 3]], 1),
        side=14,
    )
    assert torch.allclose(mirrored.flip(2), plain, atol=1e-4)
    assert not torch.allclose(mirrored, plain, atol=1e-1)


def test_beyond_the_frame_is_outside_the_object():
    full = torch.full((1, 8, 8), 127, dtype=torch.int8)
    frame = torch.tensor([[8.0, 8.0, 16.0, 16.0]])
    s = sample_field(full, frame, torch.tensor([[0.0, 0.0, 24.0, 24.0]]), side=24)[0]
    inside = torch.zeros(24, 24, dtype=torch.bool)
    inside[8:16, 8:16] = True
    assert torch.equal(s > 0, inside)
    assert (s[~inside] <= -0.5).all()
    assert s[12, 0] < s[12, 4] < s[12, 7]


def test_a_roi_without_extent_has_finite_distances():
    zeros = torch.zeros(3, 4)
    s = sample_field(torch.zeros(3, 8, 8, dtype=torch.int8), zeros, zeros, side=14)
    assert torch.isfinite(s).all()


def test_zero_rois_have_zero_targets():
    s = sample_field(
        torch.zeros(0, 8, 8, dtype=torch.int8), torch.zeros(0, 4), torch.zeros(0, 4), side=14
    )
    for target in targets_from_distance(s, kernel_size=5, unite_boundary=True):
        assert target.shape == (0, 14, 14)


def literal_field_from_mask(mask, box, side):
    """Follow the rule of the docstring, one cell at a time, in Python floats."""
    centers = []
    for start, stop in ((box[0], box[2]), (box[1], box[3])):
        center, half = (start + stop) / 2, (stop - start) * 0.75
        low, high = center - half, center + half
        centers.append([low + (j + 0.5) * ((high - low) / side) - 0.5 for j in range(side)])

    def pixel(row, column):
        inside = 0 <= row < mask.shape[0] and 0 <= column < mask.shape[1]
        return float(mask[row, column]) if inside else 0.0

    inside = np.zeros((side, side), np.bool_)
    for i, y in enumerate(centers[1]):
        for j, x in enumerate(centers[0]):
            top, left = int(np.floor(y)), int(np.floor(x))
            ty, tx = y - top, x - left
            upper = (1 - tx) * pixel(top, left) + tx * pixel(top, left + 1)
            lower = (1 - tx) * pixel(top + 1, left) + tx * pixel(top + 1, left + 1)
            inside[i, j] = (1 - ty) * upper + ty * lower >= 0.5
    return mask_to_field(torch.from_numpy(inside)[None])[0]


@settings(deadline=None, max_examples=25)
@given(
    st_numpy.arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20)), elements={}).map(
        lambda a: a % 2
    ),
    st.tuples(*[st.floats(-8, 24, width=32)] * 2, *[st.floats(0.125, 30, width=32)] * 2),
)
def test_resampling_follows_its_rule_bit_for_bit(mask, corner_and_extent):
    x, y, wide, high = corner_and_extent
    box = (x, y, x + wide, y + high)
    ours = field_from_mask(torch.from_numpy(mask), torch.tensor(box).double(), side=16)
    assert torch.equal(ours, literal_field_from_mask(mask, box, 16))


def test_frames_are_boxes_enlarged_1_5_times():
    boxes = torch.tensor([[[10.0, 20.0, 30.0, 60.0]]])
    assert boxes_to_frames(boxes).tolist() == [[[5.0, 10.0, 35.0, 70.0]]]


def test_targets_are_made_on_the_gpu_without_a_host_sync():
    with FakeTensorMode(), torch.device("cuda"):
        field = torch.zeros(6, 112, 112, dtype=torch.int8)
        boxes = torch.rand(6, 4)
        s = sample_field(field, boxes_to_frames(boxes), boxes, side=28)
        sampled = targets_from_distance(s, kernel_size=5, unite_boundary=True)
        exact = targets_from_field(field, kernel_size=5, unite_boundary=True)
    assert {(t.device.type, t.shape) for t in sampled} == {("cuda", (6, 28, 28))}
    assert {(t.device.type, t.shape) for t in exact} == {("cuda", (6, 112, 112))}


def coco_instances(root: Path, count: int):
    truth = json.loads((root / "coco_mini/annotations/instances_val2017.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    kept = [a for a in truth["annotations"] if not a["iscrowd"] and min(a["bbox"][2:]) >= 1]
    for annotation in kept[:: max(len(kept) // count, 1)][:count]:
        polygons = coco_mask.frPyObjects(annotation["segmentation"], *sizes[annotation["image_id"]])
        x, y, wide, high = annotation["bbox"]
        mask = torch.from_numpy(coco_mask.decode([coco_mask.merge(polygons)])[:, :, 0])
        yield mask, torch.tensor([x, y, x + wide, y + high])


def mean_iou(ours, theirs):
    shared = (ours * theirs).flatten(1).sum(1)
    union = torch.maximum(ours, theirs).flatten(1).sum(1)
    return float((shared[union > 0] / union[union > 0]).mean())


@pytest.mark.parametrize(
    ("jitter", "least"),
    [
        # At the ground-truth box, and at boxes moved to an IoU of about 0.7.
        (0.0, {"mask": 0.96, "boundary": 0.82, "contraction": 0.93, "expansion": 0.84}),
        (0.12, {"mask": 0.96, "boundary": 0.70, "contraction": 0.84, "expansion": 0.80}),
    ],
)
def test_sampled_targets_of_real_instances_are_close_to_the_exact_ones(real_data, jitter, least):
    instances = list(coco_instances(real_data, 100))
    boxes = torch.stack([box for _, box in instances])
    fields = torch.stack([field_from_mask(mask, box, side=112) for mask, box in instances])
    extent = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    offset = torch.rand(boxes.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rois = boxes + jitter * offset * extent
    s = sample_field(fields, boxes_to_frames(boxes), rois, side=28)
    sampled = targets_from_distance(s, kernel_size=5, unite_boundary=True)
    first = torch.zeros(1, dtype=torch.int64)
    grids = [
        crop_masks(mask[None, None], roi[None], first, first, side=28)[0]
        for (mask, _), roi in zip(instances, rois, strict=True)
    ]
    exact = targets_from_masks(torch.stack(grids), kernel_size=5, unite_boundary=True)
    for name, floor in least.items():
        assert mean_iou(getattr(sampled, name), getattr(exact, name)) >= floor, name
