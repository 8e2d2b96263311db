"""Every model trains as one graph: `fullgraph` makes a graph break an error.

Dynamo traces the losses of whole models and of the mask heads. AOT autograd traces the backward
pass too, of one head only, because it takes seconds for a whole detector.
"""

import pytest
import torch

from bsm.build import build_model
from bsm.instance.roi_targets import MaskRois
from tests.bsm import synthetic
from tests.bsm.semantic import label_maps


@pytest.fixture(autouse=True)
def _forget_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compare(function, losses_of, parameters, *, backend: str) -> None:
    """Compare losses and gradients of a compiled function with those of the function itself."""
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    expected, found = losses_of(function), losses_of(compiled)
    assert found.keys() == expected.keys()
    for name, loss in expected.items():
        assert found[name].item() == pytest.approx(loss.item(), abs=1e-5), name
    parameters = [p for p in parameters if p.requires_grad]
    sides = [torch.autograd.grad(sum(each.values()), parameters) for each in (expected, found)]
    for wanted, got in zip(*sides, strict=True):
        assert torch.allclose(wanted, got, atol=1e-5)


@pytest.mark.parametrize(("kind", "boxes"), [("fine", "single"), ("light", "cascade")])
def test_a_detector_is_one_graph(kind: str, boxes: str):
    torch.manual_seed(0)
    model = build_model(synthetic.tiny_config(kind=kind, boxes=boxes)).train()
    arguments = synthetic.shapes_batch()
    compare(model, lambda function: function(*arguments), model.parameters(), backend="eager")


# The others are parts of these and of the detectors: squeeze of guided, plain of fine.
@pytest.mark.parametrize(
    ("kind", "backend"),
    [("bmask", "eager"), ("pointrend", "eager"), ("guided", "eager"), ("light", "aot_eager")],
)
def test_a_mask_head_is_one_graph(kind: str, backend: str):
    torch.manual_seed(0)
    source = "roi" if kind == "bmask" else "field"
    model = build_model(synthetic.tiny_config(kind=kind, source=source)).train()
    _, _, targets = synthetic.shapes_batch()
    pyramid = [torch.rand(2, 16, 64 // s, 64 // s) for s in (4, 8, 16, 32)]
    image, slot = torch.arange(6) // 3, torch.arange(6) % 3
    boxes = torch.cat((image[:, None], targets.boxes_xyxy.flatten(0, 1)), dim=1)
    rois = MaskRois(boxes, targets.category_index.flatten(), slot, torch.ones(6), slot)
    compare(
        model.mask_head.losses,
        lambda function: function(pyramid, rois, targets),
        model.mask_head.parameters(),
        backend=backend,
    )


@pytest.mark.parametrize("kind", ["pointrend", "guided"])
def test_a_semantic_model_is_one_graph(kind: str):
    torch.manual_seed(0)
    config = label_maps.tiny_config(kind=kind, auxiliary=0.4, cross_entropy="ohem")
    model = build_model(config).train()
    arguments = label_maps.shapes_batch()
    compare(model, lambda function: function(*arguments), model.parameters(), backend="eager")
