"""A training step of the semantic models never syncs: see tests/bsm/test_fake_cuda.py."""

import pytest
import torch

from bsm.build import build_model
from bsm.semantic.deeplab import choose_labels
from bsm.semantic.field import SemanticTargets
from tests.bsm.semantic.label_maps import KINDS, shapes_batch, tiny_config
from tests.no_host_tensors import ForbidHostTensors, fake_gpu

CASES = pytest.mark.parametrize(
    ("kind", "output_stride", "cross_entropy"),
    [(kind, 8, "plain") for kind in KINDS] + [("guided", 16, "ohem")],
)


def model_of(kind: str, output_stride: int, cross_entropy: str):
    config = tiny_config(
        kind=kind, output_stride=output_stride, cross_entropy=cross_entropy, auxiliary=0.4
    )
    return build_model(config)


def losses_of(model, images, sizes, targets):
    with ForbidHostTensors():
        losses = model(images, sizes, targets)
    assert all(value.shape == () for value in losses.values())
    return losses


@CASES
def test_forward_and_backward_need_no_values(kind, output_stride, cross_entropy):
    with torch.device("meta"):
        model = model_of(kind, output_stride, cross_entropy)
    images, sizes, targets = shapes_batch()
    moved = SemanticTargets(*(t.to("meta") for t in targets))
    sum(losses_of(model, images.to("meta"), sizes.to("meta"), moved).values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@CASES
def test_forward_stays_on_the_gpu(kind, output_stride, cross_entropy):
    images, sizes, targets = shapes_batch()
    with fake_gpu(), torch.device("cuda"):
        model = model_of(kind, output_stride, cross_entropy)
        moved = [torch.empty(t.shape, dtype=t.dtype) for t in (images, sizes, *targets)]
        losses = losses_of(model, moved[0], moved[1], SemanticTargets(*moved[2:]))
        assert {value.device.type for value in losses.values()} == {"cuda"}
        model.eval()
        with ForbidHostTensors():
            logits = model(moved[0], moved[1])
            labels = choose_labels(logits, moved[1])
        assert logits.shape == (2, 3, 64, 80)
        assert labels.device.type == "cuda"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@CASES
def test_a_real_step_never_syncs(kind, output_stride, cross_entropy):
    model = model_of(kind, output_stride, cross_entropy).cuda()
    images, sizes, targets = shapes_batch()
    arguments = images.cuda(), sizes.cuda(), SemanticTargets(*(t.cuda() for t in targets))
    sum(model(*arguments).values()).backward()  # the first step may initialize libraries
    torch.cuda.set_sync_debug_mode("error")
    try:
        sum(model(*arguments).values()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
