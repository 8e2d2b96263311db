import dataclasses
import sys

import pytest
import torch
import torch.nn.functional as F

from bsm.build import build_model
from bsm.configs.shared import TargetConfig
from bsm.instance import nms, rcnn, roi
from bsm.instance.box_ops import pairwise_iou
from bsm.instance.roi_targets import MaskRois, make_grid_targets
from bsm.instance.tensors import Detections, Targets
from bsm.morphology import crop_masks
from tests.bsm.synthetic import KINDS, shapes_batch, tiny_config

SQUEEZE_LOSSES = {"loss_mask", "loss_boundary", "loss_contraction", "loss_expansion"}
GUIDED_LOSSES = SQUEEZE_LOSSES | {"loss_flow_contraction", "loss_flow_expansion"}
MASK_LOSSES = {
    "plain": {"loss_mask"},
    "bmask": {"loss_mask", "loss_boundary"},
    "pointrend": {"loss_mask", "loss_mask_point"},
    "squeeze": SQUEEZE_LOSSES,
    "light": GUIDED_LOSSES,
    "guided": GUIDED_LOSSES,
    "fine": {"loss_mask", "loss_mask_fine"},
}
BOX_LOSSES = {
    "single": {"loss_class", "loss_box"},
    "cascade": {f"loss_{name}_stage{k}" for name in ("class", "box") for k in (1, 2, 3)},
}
DETECTION_LOSSES = {"loss_objectness", "loss_proposal_box"}
DETECTORS = [(kind, boxes) for boxes in ("single", "cascade") for kind in KINDS]


def model_of(seed: int = 0, **fields):
    torch.manual_seed(seed)
    return build_model(tiny_config(**fields))


def grads(model, losses) -> dict:
    model.zero_grad()
    sum(losses.values()).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def rois_of(targets: Targets, slot: int = 0) -> MaskRois:
    """Make RoIs of the target boxes in one slot of each image."""
    n = len(targets.valid)
    return MaskRois(
        torch.cat((torch.arange(n)[:, None].float(), targets.boxes_xyxy[:, slot]), dim=1),
        targets.category_index[:, slot],
        torch.full((n,), slot),
        torch.ones(n),
        torch.full((n,), slot),
    )


@pytest.mark.parametrize(("kind", "boxes"), DETECTORS)
@pytest.mark.parametrize("slots", ["none", "invalid", "one image"])
def test_images_without_objects_train(kind: str, boxes: str, slots: str):
    source = "roi" if kind in {"squeeze", "pointrend"} else "field"
    model = model_of(kind=kind, source=source, boxes=boxes)
    images, sizes, targets = shapes_batch()
    if slots == "none":
        targets = Targets(*(t if t.dim() == 1 else t[:, :0] for t in targets))
    else:
        valid = torch.zeros_like(targets.valid)
        valid[0] = slots == "one image"
        empty = torch.where(valid[..., None], targets.boxes_xyxy, 0.0)
        targets = targets._replace(valid=valid, boxes_xyxy=empty)
    losses = model(images, sizes, targets)
    assert set(losses) == DETECTION_LOSSES | BOX_LOSSES[boxes] | MASK_LOSSES[kind]
    assert all(value.isfinite() for value in losses.values())
    if slots != "one image":
        boxless = {name for name in losses if name.startswith("loss_box")}
        for name in MASK_LOSSES[kind] | boxless | {"loss_proposal_box"}:
            assert losses[name] == 0
    for name, grad in grads(model, losses).items():
        assert grad is not None, name
        assert grad.isfinite().all(), name


def use_gpu_code_path(monkeypatch) -> list[str]:
    """Run the GPU's code path on the CPU; return the list of calls."""
    called = []

    def find_used_slots(valid):
        called.append("slots")
        return torch.arange(valid.numel())

    def keep_after_nms(boxes, valid, **options):
        called.append("nms")
        return nms.keep_without_sync(boxes, valid, **options)

    def pool_rois(features, rois, *, side, box_convention):
        called.append("pool")
        level = roi.assign_levels(rois[:, 1:], box_convention=box_convention)
        return roi.pool_without_sync(
            features, rois, level, side=side, box_convention=box_convention
        )

    users = [m for n, m in sys.modules.items() if n.startswith("bsm.instance") and m is not roi]
    for function in (find_used_slots, keep_after_nms, pool_rois):
        for module in users:
            if hasattr(module, function.__name__) and module is not nms:
                monkeypatch.setattr(module, function.__name__, function)
    return called


@pytest.mark.parametrize(
    ("kind", "boxes", "train_on"),
    [
        ("plain", "single", "method"),
        ("squeeze", "single", "predicted"),
        ("bmask", "single", "method"),
        ("pointrend", "single", "method"),
        ("guided", "cascade", "method"),
        ("light", "cascade", "predicted"),
        ("fine", "single", "method"),
    ],
)
def test_the_gpu_code_path_gives_the_numbers_of_the_cpu(monkeypatch, kind, boxes, train_on):
    """Empty slots, fixed-point NMS and pooling by shrinking change no loss and no gradient."""
    options = {"kind": kind, "boxes": boxes, "train_on": train_on}
    model = model_of(**options)
    images, sizes, targets = shapes_batch()
    targets = targets._replace(valid=torch.tensor([[True, True, True], [True, False, False]]))
    compact = model(images, sizes, targets)
    compact_grads = grads(model, compact)
    called = use_gpu_code_path(monkeypatch)
    dense = model_of(**options)(images, sizes, targets)
    assert set(called) == {"slots", "nms", "pool"}
    for name, value in compact.items():
        assert torch.allclose(dense[name], value, rtol=1e-5, atol=1e-7), name
    model = model_of(**options)
    for name, grad in grads(model, model(images, sizes, targets)).items():
        assert torch.allclose(grad, compact_grads[name], rtol=1e-3, atol=1e-5), name


def test_both_target_sources_are_nearly_the_same_task():
    images, sizes, targets = shapes_batch()
    by_source = {}
    for source in ("field", "roi"):
        rois = rois_of(targets)
        by_source[source] = make_grid_targets(
            rois, targets, config=TargetConfig(source=source), side=28
        )
    for name in ("mask", "boundary", "contraction", "expansion"):
        a, b = (getattr(by_source[source], name).bool() for source in ("field", "roi"))
        iou = (a & b).sum() / (a | b).sum()
        assert iou > {"mask": 0.95}.get(name, 0.6), name
    del images, sizes


def test_a_sample_trains_the_same_rois_alone_and_among_others(monkeypatch):
    model = model_of().eval()  # fixed norms: batch statistics depend on the batch
    model.proposals.train()
    images, sizes, targets = shapes_batch(num_images=4)
    seen = []

    def spy(*args, **kwargs):
        seen.append(roi.sample_rois(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(rcnn, "sample_rois", spy)
    model._compute_losses(images, sizes, targets)
    for n in range(4):
        one = slice(n, n + 1)
        model._compute_losses(images[one], sizes[one], Targets(*(t[one] for t in targets)))
    together, *alone = seen
    for n, rois in enumerate(alone):
        assert torch.allclose(rois.boxes_xyxy[0], together.boxes_xyxy[n], atol=1e-3)
        assert torch.equal(rois.category_index[0], together.category_index[n])


def test_mixed_precision_gives_nearly_the_same_losses():
    images, sizes, targets = shapes_batch()
    full = model_of()(images, sizes, targets)
    model = model_of()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(images, sizes, targets)
    for name, value in full.items():
        assert mixed[name].dtype == torch.float32
        # Rounded scores change which proposals are drawn, so the tolerance is wide.
        assert torch.allclose(mixed[name], value, rtol=0.2, atol=0.2), name
    assert all(grad.isfinite().all() for grad in grads(model, mixed).values())
    model.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(images, sizes).mask_probs.isfinite().all()


@pytest.mark.parametrize("kind", ["plain", "pointrend", "guided", "fine"])
def test_only_masks_are_trained_in_the_boxes_of_the_targets(monkeypatch, kind: str):
    torch.manual_seed(0)
    model = build_model(dataclasses.replace(tiny_config(kind=kind), trains="masks"))
    images, sizes, targets = shapes_batch()
    targets = targets._replace(valid=torch.tensor([[True, True, False], [True, False, True]]))
    seen = []
    real = model.mask_head.losses

    def spy(levels, rois, targets):
        seen.append(rois)
        return real(levels, rois, targets)

    monkeypatch.setattr(model.mask_head, "losses", spy)
    losses = model(images, sizes, targets)
    assert set(losses) == MASK_LOSSES[kind]
    assert torch.equal(seen[0].boxes_xyxy, targets.boxes_xyxy[targets.valid])
    assert torch.equal(seen[0].category_index, targets.category_index[targets.valid])
    found = grads(model, losses)
    untrained = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert untrained == {n for n in found if n.startswith(("proposals.", "box_head."))}
    assert all(found[name] is not None for name in found if name not in untrained)
    assert isinstance(model.eval()(images, sizes), Detections)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_boxes_give_zero_masks(kind: str):
    model = model_of(kind=kind).eval()
    images, sizes, _ = shapes_batch()
    drawn = model.predict_masks(
        images, sizes, torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.int64)
    )
    assert drawn.shape[:2] == (2, 0)


def test_missing_targets_raise():
    model = model_of(source="roi")
    images, sizes, targets = shapes_batch()
    with pytest.raises(ValueError, match="targets: missing"):
        model(images, sizes)
    with pytest.raises(ValueError, match=r"targets\.masks: missing.*'field'"):
        model(images, sizes, targets._replace(masks=None))


def test_empty_images_give_empty_detections():
    model = model_of().eval()
    model.box_head.scores.bias.data[-1] = 50.0  # all background
    images, sizes, _ = shapes_batch()
    found = model(images, sizes)
    assert not found.valid.any()
    assert found.mask_probs.shape == (2, 10, 28, 28)
    assert found.mask_probs.eq(0).all()


@pytest.mark.parametrize(
    ("kind", "boxes"),
    [
        ("plain", "single"),
        ("bmask", "single"),
        ("pointrend", "single"),
        ("guided", "single"),
        ("light", "cascade"),
        ("fine", "single"),
    ],
)
def test_a_tiny_model_learns_boxes_and_masks(kind: str, boxes: str):
    config = tiny_config(kind=kind, num_classes=2, boxes=boxes)
    torch.manual_seed(0)
    model = build_model(config)
    images, sizes, targets = shapes_batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=60)
    for _ in range(60):
        optimizer.zero_grad()
        sum(model(images, sizes, targets).values()).backward()
        optimizer.step()
        schedule.step()
    model.eval()
    found = model(images, sizes)
    assert found.scores.diff(dim=1).le(0).all()
    drawn = model.predict_masks(images, sizes, found.boxes_xyxy, found.category_index)
    assert torch.allclose(drawn[found.valid], found.mask_probs[found.valid], atol=1e-5)
    for n in range(2):
        iou = pairwise_iou(targets.boxes_xyxy[n], found.boxes_xyxy[n])
        same = targets.category_index[n][:, None] == found.category_index[n]
        best, slot = (iou * same * found.valid[n]).max(dim=1)
        assert best.min() > 0.5
        assert found.scores[n, slot].min() > 0.3
        wanted = crop_masks(
            targets.masks, found.boxes_xyxy[n, slot], torch.full((3,), n), torch.arange(3), side=28
        )
        mask = F.interpolate(found.mask_probs[n, slot][None], size=28, mode="area")[0] >= 0.5
        mask_iou = (mask & wanted.bool()).sum((1, 2)) / (mask | wanted.bool()).sum((1, 2))
        assert mask_iou.min() > 0.7


def test_a_saved_model_is_the_same_model(tmp_path):
    from bsm.checkpoints.weights import load_weights, save_weights

    a, b = model_of(seed=0).eval(), model_of(seed=1).eval()
    save_weights(a, tmp_path / "model.safetensors")
    load_weights(b, tmp_path / "model.safetensors")
    images, sizes, _ = shapes_batch()
    for x, y in zip(a(images, sizes), b(images, sizes), strict=True):
        assert torch.equal(x, y)
    other = dataclasses.replace(tiny_config(), num_classes=7)
    with pytest.raises(ValueError, match="of another shape"):
        load_weights(build_model(other), tmp_path / "model.safetensors")
