"""Proof, on a machine without a GPU, that a training step on one never waits for the host.

Under FakeTensorMode and on the meta device tensors have a device and a shape but no values:
whatever would ask for a value (`.item()`, `bool(tensor)`, `nonzero`, a boolean index), or mix
devices, raises. Autograd cannot run on fake tensors of a GPU that is not there, so the backward
pass is shown on meta, which takes every way that is not the CPU's.
"""

from dataclasses import replace

import kornia.morphology  # noqa: F401  importing it makes tensors, and not in the step
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

from bsm.build import build_model
from bsm.instance.tensors import Detections, Targets
from tests.bsm.synthetic import shapes_batch, tiny_config
from tests.nothing_from_the_host import NothingFromTheHost, pretended_gpu

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
    )
    for slots in (3, 0)
]


def batch(slots: int) -> tuple:
    images, sizes, targets = shapes_batch()
    cut = [t if t.dim() == 1 else t[:, :slots] for t in targets]
    return images, sizes, Targets(*cut)


def losses_of(model, images, sizes, targets):
    with NothingFromTheHost():
        losses = model(images, sizes, targets)
    assert all(value.shape == () for value in losses.values())
    return losses


@pytest.mark.parametrize(("kind", "boxes", "source", "slots"), CASES)
def test_forward_and_backward_need_no_values(kind, boxes, source, slots):
    with torch.device("meta"):
        model = build_model(tiny_config(kind=kind, boxes=boxes, source=source, trunk="resnet18"))
    images, sizes, targets = batch(slots)
    moved = Targets(*(t.to("meta") for t in targets))
    sum(losses_of(model, images.to("meta"), sizes.to("meta"), moved).values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(("kind", "boxes", "source", "slots"), CASES)
def test_forward_stays_on_the_gpu(kind, boxes, source, slots):
    images, sizes, targets = batch(slots)
    with pretended_gpu(), torch.device("cuda"):
        model = build_model(tiny_config(kind=kind, boxes=boxes, source=source))
        moved = [torch.empty(t.shape, dtype=t.dtype) for t in (images, sizes, *targets)]
        losses = losses_of(model, moved[0], moved[1], Targets(*moved[2:]))
        assert {value.device.type for value in losses.values()} == {"cuda"}
        model.eval()
        with NothingFromTheHost():
            found = model(moved[0], moved[1])
        assert isinstance(found, Detections)
        assert found.mask_probs.shape[:2] == (2, 10)


def test_torchvisions_geometry_stays_on_the_gpu():
    images, sizes, targets = batch(3)
    with pretended_gpu(), torch.device("cuda"):
        model = build_model(replace(tiny_config(), box_convention="torchvision"))
        moved = [torch.empty(t.shape, dtype=t.dtype) for t in (images, sizes, *targets)]
        losses = losses_of(model, moved[0], moved[1], Targets(*moved[2:]))
        assert {value.device.type for value in losses.values()} == {"cuda"}
        model.eval()
        with NothingFromTheHost():
            assert model(moved[0], moved[1]).mask_probs.shape == (2, 10, 28, 28)


def test_a_transformer_trunk_needs_no_values():
    with torch.device("meta"):
        model = build_model(tiny_config(trunk="swin_tiny_patch4_window7_224"))
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
    with pytest.raises(AssertionError, match="works on the host"), NothingFromTheHost():
        values + torch.tensor([1.0, 2.0, 3.0])
    on_the_host = torch.ones(3)
    with pretended_gpu(), torch.device("cuda"):
        pretended = torch.ones(3)
        with pytest.raises(RuntimeError, match="device"), NothingFromTheHost():
            pretended + on_the_host
        with pytest.raises(DataDependentOutputException):
            bool(pretended.sum() > 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("kind", "boxes", "source", "slots"), CASES)
def test_a_real_step_never_waits(kind, boxes, source, slots):
    model = build_model(tiny_config(kind=kind, boxes=boxes, source=source)).cuda()
    images, sizes, targets = batch(slots)
    moved = Targets(*(t.cuda() for t in targets))
    arguments = images.cuda(), sizes.cuda(), moved
    sum(model(*arguments).values()).backward()  # the first step may set libraries up
    torch.cuda.set_sync_debug_mode("error")
    try:
        sum(model(*arguments).values()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
