"""The step never waits for a device: with fake tensors any look at a value is an error."""

import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pipeline.recipe import OptimConfig
from pipeline.training import step
from pipeline.training.optim import build_optimizer
from pipeline.training.step import Window, World, train_step
from tests.pipeline.training.tiny_training import FakeBatch, TinyModel


def two_fake_steps(model: nn.Module, *, clip_norm: float | None) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        # Backward on fake CUDA tensors needs a GPU; the step's code is the same on every device.
        device = torch.device("cpu")
        model.load_state_dict(
            {k: fake.from_tensor(v) for k, v in model.state_dict().items()}, assign=True
        )
        optim = OptimConfig(global_batch=2, clip_norm=clip_norm)
        batch = FakeBatch(
            torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
            torch.full((2, 2), 8),
            torch.zeros(2, 2),
            torch.tensor([1, 2]),
            torch.tensor([0, 1]),
        )
        window = Window(World(device=device))
        optimizer = build_optimizer(model, optim=optim)
        for number in range(2):
            measured = train_step(
                model, optimizer, passes=(batch, batch), step=number, optim=optim, device=device
            )
            window.add(measured, step=number, epoch=0, lr=0.1, passes=(batch,))


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_step_never_asks_the_device(clip_norm):
    two_fake_steps(TinyModel(), clip_norm=clip_norm)


def test_a_look_would_be_found():
    class Looks(TinyModel):
        def forward(self, *args):
            losses = super().forward(*args)
            losses["loss_box"].item()
            return losses

    with pytest.raises(Exception, match="_local_scalar_dense"):
        two_fake_steps(Looks(), clip_norm=None)


def test_a_windows_time_has_the_wait_for_the_device_in_it(monkeypatch):
    def slow_device(row, *, world):
        time.sleep(0.2)
        return row[None]

    monkeypatch.setattr(step, "gather_rows", slow_device)
    measured = step.Measured((step.GRADIENT_NORM,), torch.ones(1))
    batch = SimpleNamespace(image_id=torch.tensor([1]))
    window = Window(World())
    window.add(measured, step=0, epoch=0, lr=0.1, passes=(batch,))
    summary = window.close()
    # A GPU works off its queue while the host waits here; a checkpoint then restarts the clock.
    assert summary.seconds >= 0.2
