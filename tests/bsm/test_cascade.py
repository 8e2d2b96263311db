"""The three stages of a cascade, and the boxes in which masks are trained."""

import pytest
import torch

from bsm.build import build_model
from bsm.configs.instance import CASCADE_WEIGHTS, BoxHeadConfig
from bsm.instance import cascade
from bsm.instance.box_ops import clip_boxes, decode_boxes, encode_boxes, pairwise_iou
from bsm.instance.boxes import CODE_WEIGHTS, BoxHead
from bsm.instance.cascade import CascadeBoxHead
from bsm.instance.proposals import Proposals
from bsm.instance.roi import gather_rois, pool_rois, rematch_rois
from tests.bsm.synthetic import model_config, shapes_batch, tiny_config

CONFIG = BoxHeadConfig(kind="cascade", hidden=16, detections_per_image=5, roi_side=3)
SIZES = torch.tensor([[64, 64], [64, 64]])


def pyramid(*, requires_grad: bool = False):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, 4, 64 // s, 64 // s, generator=generator, requires_grad=requires_grad)
        for s in (4, 8, 16, 32)
    ]


def head_of() -> CascadeBoxHead:
    torch.manual_seed(0)
    head = CascadeBoxHead(model_config(4, box_head=CONFIG))
    for stage in head.stages:
        torch.nn.init.normal_(stage.deltas.weight, std=0.3)
        torch.nn.init.normal_(stage.scores.weight, std=0.3)
    return head


def sample():
    """Make RoIs near the targets and far from them, with some empty slots."""
    _, _, targets = shapes_batch()
    generator = torch.Generator().manual_seed(1)
    boxes = targets.boxes_xyxy.repeat(1, 3, 1)
    boxes = boxes + 8 * torch.rand(boxes.shape, generator=generator) - 4
    valid = torch.ones(boxes.shape[:2], dtype=torch.bool)
    valid[1, 5:] = False
    return rematch_rois(boxes, valid, targets, foreground_iou=0.5, num_classes=3), targets


def test_each_stage_has_the_parameters_of_a_class_agnostic_head():
    head = CascadeBoxHead(model_config(256, num_classes=80, box_head=BoxHeadConfig(kind="cascade")))
    single = BoxHead(model_config(256, num_classes=80))
    fewer = (320 - 4) * 1025  # one regression instead of 80
    counts = [sum(p.numel() for p in each.parameters()) for each in (*head.stages, single)]
    assert counts[0] == counts[1] == counts[2] == counts[3] - fewer
    assert (CASCADE_WEIGHTS, CONFIG.cascade_ious) == (
        ((10.0, 5.0), (20.0, 10.0), (30.0, 15.0)),
        (0.5, 0.6, 0.7),
    )


def test_each_stage_trains_on_the_boxes_of_the_one_before(monkeypatch):
    seen = []
    real = cascade.box_losses

    def spy(logits, deltas, **options):
        seen.append((deltas, options))
        return real(logits, deltas, **options)

    monkeypatch.setattr(cascade, "box_losses", spy)
    rois, targets = sample()
    losses, last = head_of().losses(pyramid(), rois, targets, SIZES)
    assert set(losses) == {f"loss_{n}_stage{k}" for n in ("class", "box") for k in (1, 2, 3)}
    assert [options["weights"] for _, options in seen] == list(CASCADE_WEIGHTS)
    boxes = rois.boxes_xyxy
    for (deltas, options), iou_threshold in zip(seen, (0.5, 0.6, 0.7), strict=True):
        at = options["rois"]
        assert torch.equal(at.boxes_xyxy, boxes)
        iou = pairwise_iou(targets.boxes_xyxy, boxes).amax(1)
        assert torch.equal(at.foreground, at.valid & (iou >= iou_threshold))
        assert (at.category_index == 3).equal(~at.foreground)
        full = torch.zeros(boxes.shape[0] * boxes.shape[1], 4)
        full[options["used"]] = deltas[:, 0].detach()
        moved = decode_boxes(full.view_as(boxes), boxes, weights=options["weights"])
        moved = torch.where(at.valid[..., None], moved, boxes)
        boxes = clip_boxes(moved, SIZES)
    assert torch.allclose(last, boxes, atol=1e-4)
    assert not last.requires_grad


def test_the_pyramid_gets_a_third_of_each_stages_gradient():
    rois, targets = sample()
    levels = pyramid(requires_grad=True)
    head = head_of()
    losses, _ = head.losses(levels, rois, targets, SIZES)
    first = losses["loss_class_stage1"] + losses["loss_box_stage1"]
    used = rois.valid.flatten().nonzero()[:, 0]
    grads = torch.autograd.grad(first, [*levels, head.stages[0].fc1.weight], allow_unused=True)
    other = pyramid(requires_grad=True)
    logits, deltas = head.stages[0](
        pool_rois(other, gather_rois(rois.boxes_xyxy, used), side=CONFIG.roi_side)
    )
    plain = cascade.box_losses(
        logits, deltas, rois=rois, target_boxes_xyxy=targets.boxes_xyxy, used=used
    )
    whole = torch.autograd.grad(
        sum(plain.values()), [*other, head.stages[0].fc1.weight], allow_unused=True
    )
    assert torch.allclose(3 * grads[0], whole[0], atol=1e-5)
    assert whole[0].any()
    assert torch.allclose(grads[-1], whole[-1], atol=1e-5)


def test_detections_are_scored_by_all_stages_in_the_boxes_of_the_last():
    rois, _ = sample()
    head, levels = head_of().eval(), pyramid()
    proposals = Proposals(rois.boxes_xyxy, rois.valid, rois.target_slot)
    found = head.detect(levels, proposals, SIZES)
    boxes, probs = rois.boxes_xyxy, []
    every = torch.arange(boxes.shape[0] * boxes.shape[1])
    for stage, weights in zip(head.stages, CASCADE_WEIGHTS, strict=True):
        if probs:
            boxes = clip_boxes(boxes, SIZES)
        pooled = pool_rois(levels, gather_rois(boxes, every), side=CONFIG.roi_side)
        logits, deltas = stage(pooled)
        probs.append(logits.softmax(-1)[:, :-1])
        boxes = decode_boxes(deltas.view_as(boxes), boxes, weights=weights)
    mean = torch.stack(probs).mean(0).view(2, -1, 3)
    boxes = clip_boxes(boxes, SIZES)
    for n in range(2):
        best = mean[n].masked_fill(~rois.valid[n][:, None], 0).flatten().argmax()
        assert torch.allclose(found.scores[n, 0], mean[n].flatten()[best])
        assert torch.allclose(found.boxes_xyxy[n, 0], boxes[n, best // 3], atol=1e-4)
        assert found.category_index[n, 0] == best % 3


@pytest.mark.parametrize(
    ("kind", "boxes", "train_on", "predicted"),
    [
        ("plain", "single", "method", False),
        ("squeeze", "single", "method", False),
        ("bmask", "single", "method", True),
        ("pointrend", "single", "method", True),
        ("bmask", "cascade", "method", False),
        ("squeeze", "single", "predicted", True),
        ("pointrend", "single", "proposals", False),
        ("light", "cascade", "predicted", True),
    ],
)
def test_masks_are_trained_in_the_boxes_of_the_method(
    monkeypatch, kind, boxes, train_on, predicted
):
    torch.manual_seed(0)
    model = build_model(tiny_config(kind=kind, boxes=boxes, train_on=train_on))
    seen = []
    real = model.mask_head.losses

    def spy(levels, rois, targets):
        seen.append(rois)
        return real(levels, rois, targets)

    monkeypatch.setattr(model.mask_head, "losses", spy)
    calls = []
    real_boxes = model.box_head.losses

    def spy_boxes(levels, rois, targets, sizes):
        losses, refined = real_boxes(levels, rois, targets, sizes)
        calls.append((rois, refined))
        return losses, refined

    monkeypatch.setattr(model.box_head, "losses", spy_boxes)
    images, sizes, targets = shapes_batch()
    losses = model(images, sizes, targets)
    ((rois, refined),) = calls
    foreground = rois.foreground.flatten()
    expected = (refined if predicted else rois.boxes_xyxy).flatten(0, 1)[foreground]
    assert torch.equal(seen[0].boxes_xyxy, expected)
    assert torch.equal(seen[0].category_index, rois.category_index.flatten()[foreground])
    # Mask losses do not train the box head.
    grads = torch.autograd.grad(
        losses["loss_mask"], list(model.box_head.parameters()), allow_unused=True
    )
    assert all(grad is None for grad in grads)


def test_the_single_head_refines_with_the_regression_of_the_targets_category():
    torch.manual_seed(0)
    head = BoxHead(model_config(4, box_head=BoxHeadConfig(hidden=16, roi_side=3)))
    torch.nn.init.normal_(head.deltas.weight, std=0.3)
    rois, targets = sample()
    _, refined = head.losses(pyramid(), rois, targets, SIZES)
    used = rois.valid.flatten().nonzero()[:, 0]
    _, deltas = head(pool_rois(pyramid(), gather_rois(rois.boxes_xyxy, used), side=3))
    for place, slot in enumerate(used.tolist()):
        if rois.foreground.flatten()[slot]:
            own = deltas[place, rois.category_index.flatten()[slot]]
            code = encode_boxes(
                rois.boxes_xyxy.flatten(0, 1)[slot],
                refined.flatten(0, 1)[slot],
                weights=CODE_WEIGHTS,
            )
            assert torch.allclose(code, own, atol=1e-3)
