"""Prove, on a machine without a GPU, that a training step on one never syncs with the host.

Under FakeTensorMode and on the meta device tensors have a device and a shape but no values, so
reading a value (`.item()`, `bool(tensor)`, `nonzero`, a boolean index) or mixing devices raises.
Autograd cannot run on fake tensors of a missing GPU, so the backward pass is tested on meta, which
takes every code path except the CPU's.
"""

from dataclasses import replace

import kornia.morphology  # noqa: F401  its import makes tensors, so do it before the step
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

from bsm.build import build_model
from bsm.instance.tensors import Detections, Targets
from tests.bsm.synthetic import shapes_batch, tiny_config
from tests.no_host_tensors import ForbidHostTensors, fake_gpu

CASES = [
    (kind, boxes, source, slots)
    for kind, boxes, source in (
        ("plain", "single", "field"),
        ("bmask", "single", "roi"),
        ("pointrend", "single", "field"),
        ("pointrend", "cascade", "roi"),
        ("squeeze", "single", "roi"),
        ("guided", "single", "field"),
        ("light", "cascade", "field"),
        ("fine", "single", "field"),
        ("fine", "cascade", "roi"),
    )
    for slots in (3, 0)
]


def batch(slots: int) -> tuple:
    images, sizes, targets = shapes_batch()
    cut = [t if t.dim() == 1 else t[:, :slots] for t in targets]
    return images, sizes, Targets(*cut)


def losses_of(model, images, sizes, targets):
    with ForbidHostTensors():
        losses = model(images, sizes, targets)
    assert all(value.shape == () for value in losses.values())
    return losses


@pytest.mark.parametrize(("kind", "boxes", "source", "slots"), CASES)
def test_forward_and_backward_need_no_values(kind, boxes, source, slots):
    with torch.device("meta"):
        model = build_model(tiny_config(kind=kind, boxes=boxes, source=source, backbone="resnet18"))
    images, sizes, targets = batch(slots)
    moved = Targets(*(t.to("meta") for t in targets))
    sum(losses_of(model, images.to("meta"), sizes.to("meta"), moved).values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(("kind", "boxes", "source", "slots"), CASES)
def test_forward_stays_on_the_gpu(kind, boxes, source, slots):
    images, sizes, targets = batch(slots)
    with fake_gpu(), torch.device("cuda"):
        model = build_model(tiny_config(kind=kind, boxes=boxes, source=source))
        moved = [torch.empty(t.shape, dtype=t.dtype) for t in (images, sizes, *targets)]
        losses = losses_of(model, moved[0], moved[1], Targets(*moved[2:]))
        assert {value.device.type for value in losses.values()} == {"cuda"}
        model.eval()
        with ForbidHostTensors():
            found = model(moved[0], moved[1])
        assert isinstance(found, Detections)
        assert found.mask_probs.shape[:2] == (2, 10)


def test_torchvisions_box_convention_stays_on_the_gpu():
    images, sizes, targets = batch(3)
    with fake_gpu(), torch.device("cuda"):
        model = build_model(replace(tiny_config(), box_convention="torchvision"))
        moved = [torch.empty(t.shape, dtype=t.dtype) for t in (images, sizes, *targets)]
        losses = losses_of(model, moved[0], moved[1], Targets(*moved[2:]))
        assert {value.device.type for value in losses.values()} == {"cuda"}
        model.eval()
        with ForbidHostTensors():
            assert model(moved[0], moved[1]).mask_probs.shape == (2, 10, 28, 28)


def test_a_transformer_backbone_needs_no_values():
    with torch.device("meta"):
        model = build_model(tiny_config(backbone="swin_tiny_patch4_window7_224"))
    images, sizes, targets = (
        Targets(*(t.to("meta") for t in each)) if isinstance(each, Targets) else each.to("meta")
        for each in batch(3)
    )
    sum(losses_of(model, images, sizes, targets).values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_the_proof_can_fail():
    with torch.device("meta"):
        values = torch.ones(3)
    for question in (
        lambda: values.sum().item(),
        lambda: bool(values[0] > 0),
        values.nonzero,
        lambda: values[values > 0],
    ):
        with pytest.raises((RuntimeError, NotImplementedError)):
            question()
    with pytest.raises(AssertionError, match="works on the host"), ForbidHostTensors():
        values + torch.tensor([1.0, 2.0, 3.0])
    on_the_host = torch.ones(3)
    with fake_gpu(), torch.device("cuda"):
        pretended = torch.ones(3)
        with pytest.raises(RuntimeError, match="device"), ForbidHostTensors():
            pretended + on_the_host
        with pytest.raises(DataDependentOutputException):
            bool(pretended.sum() > 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("kind", "boxes", "source", "slots"), CASES)
def test_a_real_step_never_syncs(kind, boxes, source, slots):
    model = build_model(tiny_config(kind=kind, boxes=boxes, source=source)).cuda()
    images, sizes, targets = batch(slots)
    moved = Targets(*(t.cuda() for t in targets))
    arguments = images.cuda(), sizes.cuda(), moved
    sum(model(*arguments).values()).backward()  # the first step may initialize libraries
    torch.cuda.set_sync_debug_mode("error")
    try:
        sum(model(*arguments).values()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
