"""Recomputed activations: the same losses and gradients, and less to keep."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from bsm.activation_checkpointing import checkpoint_activations
from bsm.backbone import FpnBackbone
from bsm.build import build_model
from bsm.configs.shared import FpnBackboneConfig
from tests.bsm import synthetic


class Detector(nn.Module):
    """A backbone under its name in detectors."""

    def __init__(self, name: str, *, norm: str = "group") -> None:
        super().__init__()
        self.config = replace(
            synthetic.tiny_config(kind="plain"),
            backbone=FpnBackboneConfig(name=name, norm=norm, freeze_at=0, fpn_channels=8),
        )
        torch.manual_seed(0)
        self.backbone = FpnBackbone(self.config.backbone)

    def forward(self, images: Tensor) -> Tensor:
        sizes = torch.tensor([[64, 96]] * len(images))
        return sum(level.square().mean() for level in self.backbone(images, sizes))


def train(model: nn.Module, call: Callable[[Tensor], Tensor]) -> tuple[float, list[Tensor], int]:
    """Return the loss, the gradients, and the bytes that the forward pass keeps."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    images = torch.randint(0, 255, (2, 3, 64, 96), generator=torch.Generator().manual_seed(1))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = call(images.byte())
    loss.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return loss.item(), gradients, sum(kept.values())


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("test_resnet", "group"),
        # Its norms overwrite their inputs.
        ("resnet10t", "frozen"),
        ("convnext_atto", "group"),
        ("test_vit", "group"),
    ],
)
def test_gradients_are_equal_and_less_is_kept(name: str, norm: str):
    model = Detector(name, norm=norm).train()
    loss, gradients, kept = train(model, model)
    checkpoint_activations(model)
    found_loss, found, found_kept = train(model, model)
    assert found_loss == loss
    assert len(found) == len(gradients) == len(list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(found, gradients, strict=True))
    assert found_kept < 0.8 * kept


def test_it_compiles_as_one_graph():
    torch._dynamo.reset()
    model = Detector("test_resnet", norm="frozen").train()
    loss, gradients, _ = train(model, model)
    checkpoint_activations(model)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    found_loss, found, _ = train(model, compiled)
    assert found_loss == pytest.approx(loss, rel=1e-5)
    for a, b in zip(found, gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    torch._dynamo.reset()


def test_batch_norms_are_refused():
    config = synthetic.tiny_config(kind="plain")
    backbone = replace(config.backbone, name="test_resnet", norm="batch", freeze_at=0)
    model = build_model(replace(config, backbone=backbone))
    with pytest.raises(ValueError, match=r"test_resnet has batch norms.* frozen or group"):
        checkpoint_activations(model)
