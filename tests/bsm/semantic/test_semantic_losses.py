"""Losses of label maps are means without void pixels and absent classes."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bsm.configs.semantic import CrossEntropyConfig
from bsm.losses import bce_loss, dice_loss
from bsm.semantic.field import VOID, ClassTargets
from bsm.semantic.losses import class_bce_loss, class_dice_loss, label_loss
from bsm.semantic.morphology import class_targets_from_labels
from tests.bsm.semantic.label_maps import blobs

PLAIN, OHEM = CrossEntropyConfig(), CrossEntropyConfig(kind="ohem", ohem_min_kept=40)
BAND_LOSSES = pytest.mark.parametrize(
    ("ours", "original"), [(class_bce_loss, bce_loss), (class_dice_loss, dice_loss)]
)


def wave(*shape: int) -> torch.Tensor:
    at = torch.arange(math.prod(shape), dtype=torch.float64)
    return (3 * torch.sin(0.7 * at + 0.1 * at.sqrt())).float().view(shape)


def inputs(*, void: float = 0.2, num_classes: int = 4) -> tuple[torch.Tensor, ClassTargets]:
    """Make logits, and targets of two images without the last class."""
    label = blobs(4, num_classes=num_classes - 1, size_hw=(20, 24), void=void, count=2)
    targets = class_targets_from_labels(
        label, num_classes=num_classes, kernel_size=5, unite_boundary=True
    )
    return wave(2, num_classes, 20, 24).requires_grad_(), targets


def test_cross_entropy_is_torchs_mean_without_void():
    label = blobs(0, void=0.3, count=2)
    logits = wave(2, 3, *label.shape[1:])
    wanted = F.cross_entropy(logits, label.long(), ignore_index=VOID)
    assert label_loss(logits, label, config=PLAIN).item() == pytest.approx(wanted.item(), rel=1e-6)


@pytest.mark.parametrize("confidence", [1.0, 6.0])
def test_hard_examples_are_those_below_the_threshold_or_the_hardest_few(confidence: float):
    label = blobs(0, void=0.3)
    logits = wave(1, 3, *label.shape[1:])
    known = label[0] != VOID
    # If the model is certain everywhere, only the minimum number is left.
    one_hot = F.one_hot(label.long().clamp(max=2), 3).movedim(-1, 1)
    logits = logits if confidence == 1.0 else logits / 30 + confidence * one_hot
    probs = logits.double().softmax(1).gather(1, label.long().clamp(max=2)[:, None])[0, 0]
    hardest_first = np.sort(probs[known].numpy())
    hard = hardest_first[hardest_first <= 0.7]
    kept = hard if len(hard) > 40 else hardest_first[:40]
    assert (len(kept) == 40) == (confidence > 1)
    found = label_loss(logits, label, config=OHEM).item()
    assert found == pytest.approx(-np.log(kept).mean(), rel=1e-4)


def test_all_pixels_are_hard_if_there_are_fewer_than_the_minimum():
    label = torch.full((1, 8, 8), VOID, dtype=torch.uint8)
    label[0, 0, :5] = 1
    logits = wave(1, 3, 8, 8)
    plain, hard = (label_loss(logits, label, config=config).item() for config in (PLAIN, OHEM))
    assert hard == pytest.approx(plain, rel=1e-6)


@BAND_LOSSES
@pytest.mark.parametrize("band", ["boundary", "contraction", "expansion"])
def test_losses_of_bands_are_those_of_masks_on_the_valid_pixels_of_present_pairs(
    ours, original, band: str
):
    logits, targets = inputs()
    wanted = getattr(targets, band)
    pairs = [(n, c) for n in range(2) for c in range(4) if targets.present[n, c]]
    assert 0 < len(pairs) < 8
    one_by_one = [
        original(
            logits[n, c][targets.valid[n]][None, None], wanted[n, c][targets.valid[n]][None, None]
        ).item()
        for n, c in pairs
    ]
    assert ours(logits, wanted, targets=targets).item() == pytest.approx(
        np.mean(one_by_one), rel=1e-5
    )


@BAND_LOSSES
def test_void_and_absent_classes_are_not_trained(ours, original):
    del original
    logits, targets = inputs()
    (grad,) = torch.autograd.grad(ours(logits, targets.boundary, targets=targets), logits)
    counts = targets.valid[:, None] & targets.present[:, :, None, None]
    assert counts.any()
    assert not counts.all()
    assert grad[counts].all()
    assert not grad[~counts].any()


@pytest.mark.parametrize("loss", [class_bce_loss, class_dice_loss])
def test_without_any_class_a_loss_is_zero_and_so_is_its_gradient(loss):
    logits, _ = inputs()
    label = torch.full((2, 20, 24), VOID, dtype=torch.uint8)
    nothing = class_targets_from_labels(label, num_classes=4, kernel_size=5, unite_boundary=True)
    for value in (
        loss(logits, nothing.boundary, targets=nothing),
        label_loss(logits, label, config=PLAIN),
        label_loss(logits, label, config=OHEM),
    ):
        assert value == 0
        (grad,) = torch.autograd.grad(value, logits)
        assert not grad.any()


@pytest.mark.parametrize("loss", [class_bce_loss, class_dice_loss])
def test_one_map_of_floats_is_kept_for_the_backward_pass(loss):
    logits, targets = inputs()
    floats = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point() and tensor.numel() == logits.numel():
            floats.append(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss(logits, targets.boundary, targets=targets)
    assert len(set(floats)) == 1


def test_large_maps_are_summed_in_float32():
    label = torch.zeros(1, 300, 300, dtype=torch.uint8)
    targets = class_targets_from_labels(label, num_classes=2, kernel_size=3, unite_boundary=True)
    everywhere = torch.ones_like(targets.boundary)
    sure = torch.full((1, 2, 300, 300), 12.0)
    assert class_dice_loss(sure, everywhere, targets=targets).item() == pytest.approx(0, abs=1e-4)
    assert class_bce_loss(sure, everywhere, targets=targets).item() == pytest.approx(
        math.log1p(math.exp(-12)), rel=1e-2
    )
