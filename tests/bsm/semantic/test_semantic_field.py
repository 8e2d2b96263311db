"""The field of a label map gives the exact targets of every class and every kernel."""

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from bsm.semantic.field import (
    VOID,
    ClassTargets,
    SemanticTargets,
    label_to_field,
    targets_from_semantic_field,
)
from bsm.semantic.morphology import class_targets_from_labels
from tests.bsm.semantic.label_maps import blobs, targets_of

ODD_KERNELS = range(3, 32, 2)


def from_field(
    label: Tensor, *, num_classes: int, kernel_size: int, unite: bool = True
) -> ClassTargets:
    return targets_from_semantic_field(
        targets_of(label, num_classes=num_classes),
        num_classes=num_classes,
        kernel_size=kernel_size,
        unite_boundary=unite,
    )


def by_morphology(
    label: Tensor, *, num_classes: int, kernel_size: int, unite: bool = True
) -> ClassTargets:
    return class_targets_from_labels(
        label, num_classes=num_classes, kernel_size=kernel_size, unite_boundary=unite
    )


def test_the_field_is_the_two_nearest_other_classes():
    label = blobs(0, num_classes=5, size_hw=(14, 17), coarseness=3)[0]
    field = label_to_field(label[None], num_classes=5)
    at = np.argwhere(label.numpy() != VOID)
    classes = label.numpy()[tuple(at.T)]
    for y, x in at:
        apart = np.abs(at - (y, x)).max(1)
        own = label[y, x].item()
        by_class = [(apart[classes == c].min(), c) for c in range(5) if c != own if c in classes]
        nearest = [*sorted(by_class), (VOID, VOID), (VOID, VOID)][:2]
        found = [(field.distance_1, field.other_1), (field.distance_2, field.other_2)]
        assert [(d[0, y, x].item(), o[0, y, x].item()) for d, o in found] == nearest
    for plane in field:
        assert plane.dtype == torch.uint8
        assert plane[0][label == VOID].eq(VOID).all()


def test_classes_out_of_reach_are_not_in_the_field():
    label = torch.zeros(1, 1, 10, dtype=torch.uint8)
    label[..., 6:] = 1
    field = label_to_field(label, num_classes=2, farthest=3)
    assert field.distance_1[0, 0].tolist() == [VOID, VOID, VOID, 3, 2, 1, 1, 2, 3, VOID]
    assert field.other_1[0, 0].tolist() == [VOID, VOID, VOID, 1, 1, 1, 0, 0, 0, VOID]
    assert field.other_2.eq(VOID).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("unite", [True, False])
def test_where_three_classes_meet_every_kernel_is_exact(seed: int, unite: bool):
    label = blobs(seed, coarseness=4 + 3 * seed, void=0.1 * (seed % 3), count=3)
    held = targets_of(label)
    for kernel_size in ODD_KERNELS:
        ours = targets_from_semantic_field(
            held, num_classes=3, kernel_size=kernel_size, unite_boundary=unite
        )
        exact = by_morphology(label, num_classes=3, kernel_size=kernel_size, unite=unite)
        assert exact.boundary.any()
        for name, wanted in exact._asdict().items():
            assert torch.equal(getattr(ours, name), wanted), (kernel_size, name)


def test_only_a_third_neighbor_is_missing():
    label = blobs(1, num_classes=8, coarseness=3)
    for kernel_size in (3, 15):
        ours = from_field(label, num_classes=8, kernel_size=kernel_size)
        exact = by_morphology(label, num_classes=8, kernel_size=kernel_size)
        for name in ("boundary", "expansion", "present", "valid"):
            assert torch.equal(getattr(ours, name), getattr(exact, name))
        missing = exact.contraction & ~ours.contraction
        assert not (ours.contraction & ~exact.contraction).any()
        near = by_morphology(label, num_classes=8, kernel_size=kernel_size, unite=False)
        neighbors = near.contraction.sum(1)
        assert torch.equal(missing.sum(1), (neighbors - 2).clamp(min=0))
        assert missing.any()


@pytest.mark.parametrize("kernel_size", [3, 15, 31])
def test_morphology_is_opencvs_with_void_outside_dilations_and_inside_erosions(kernel_size):
    label = blobs(3, num_classes=4, void=0.2)
    targets = by_morphology(label, num_classes=4, kernel_size=kernel_size, unite=False)
    united = by_morphology(label, num_classes=4, kernel_size=kernel_size)
    square, small = np.ones((kernel_size, kernel_size), np.uint8), np.ones((3, 3), np.uint8)
    void = (label[0] == VOID).numpy()
    for c in range(4):
        mask = (label[0] == c).numpy().astype(np.uint8)
        shrinking = mask | void.astype(np.uint8)
        wanted = {
            "boundary": mask - (mask & cv2.erode(shrinking, small)),
            "contraction": (cv2.dilate(mask, square) - mask) * ~void,
            "expansion": mask - (mask & cv2.erode(shrinking, square)),
        }
        for name, band in wanted.items():
            assert np.array_equal(getattr(targets, name)[0, c].numpy(), band > 0), name
        both = wanted["contraction"] | wanted["boundary"]
        assert np.array_equal(united.contraction[0, c].numpy(), both > 0)


def test_neither_void_nor_the_border_of_the_map_makes_an_outline():
    label = torch.full((1, 20, 20), 1, dtype=torch.uint8)
    label[:, 5:9, 3:12] = VOID
    for make in (from_field, by_morphology):
        targets = make(label, num_classes=3, kernel_size=15)
        for name in ("boundary", "contraction", "expansion"):
            assert not getattr(targets, name).any()
        assert targets.present.tolist() == [[False, True, False]]
        assert torch.equal(targets.valid, label != VOID)


def test_no_target_is_on_void_whatever_the_field_holds_there():
    label = blobs(5, void=0.3)
    held = targets_of(label)
    junk = [torch.where(label == VOID, 1, plane) for plane in held[1:5]]
    targets = targets_from_semantic_field(
        SemanticTargets(label, *junk, *held[5:]),
        num_classes=3,
        kernel_size=15,
        unite_boundary=True,
    )
    for name, wanted in by_morphology(label, num_classes=3, kernel_size=15)._asdict().items():
        assert torch.equal(getattr(targets, name), wanted), name


@pytest.mark.parametrize("zoom", [0.75, 1.3, 2.0])
def test_a_resized_field_reaches_as_far_as_the_kernel_of_the_resized_map(zoom: float):
    label = blobs(2, size_hw=(60, 70), coarseness=20, void=0.0)
    size = [round(side * zoom) for side in label.shape[-2:]]
    rows, columns = (
        ((torch.arange(n) + 0.5) / zoom).long().clamp(max=side - 1)
        for n, side in zip(size, label.shape[-2:], strict=True)
    )
    resized = [plane[:, rows][:, :, columns] for plane in targets_of(label)[:5]]
    held = SemanticTargets(*resized, torch.tensor([zoom]), torch.zeros(1, dtype=torch.int64))
    for kernel_size in (7, 15):
        ours = targets_from_semantic_field(
            held, num_classes=3, kernel_size=kernel_size, unite_boundary=False
        )
        # The outline of a resized map is known to a pixel of the stored one.
        off = 2 * int(np.ceil(zoom))
        low, high = (
            by_morphology(held.label, num_classes=3, kernel_size=k, unite=False)
            for k in (kernel_size - off, kernel_size + off)
        )
        for name in ("contraction", "expansion"):
            band = getattr(ours, name)
            assert not (getattr(low, name) & ~band).any()
            assert not (band & ~getattr(high, name)).any()


def test_each_image_has_its_own_zoom():
    label = torch.zeros(2, 1, 12, dtype=torch.uint8)
    label[..., 6:] = 1
    held = targets_of(label)._replace(zoom=torch.tensor([1.0, 2.0]))
    targets = targets_from_semantic_field(held, num_classes=2, kernel_size=9, unite_boundary=False)
    # 4 pixels from the outline: 4 columns, and 2 that are 2 pixels wide each.
    assert targets.expansion[:, 0, 0].sum(1).tolist() == [4, 2]
    assert targets.contraction[:, 1, 0].sum(1).tolist() == [4, 2]


def test_an_even_kernel_raises_with_its_neighbors():
    with pytest.raises(ValueError, match=r"kernel_size 4: .* Use 3 or 5"):
        from_field(blobs(0), num_classes=3, kernel_size=4)
