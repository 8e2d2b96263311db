"""A step never waits for the device: with fake tensors, reading any value is an error."""

import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pipeline.recipe import OptimConfig
from pipeline.training import step
from pipeline.training.optim import build_optimizer
from pipeline.training.step import StepMetrics, WorkerContext, train_step
from tests.pipeline.training.tiny_training import FakeBatch, TinyModel


def run_two_fake_steps(model: nn.Module, *, clip_norm: float | None) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        # Backward on fake CUDA tensors needs a GPU; the step runs the same code on every device.
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
        metrics = StepMetrics(WorkerContext(device=device))
        optimizer = build_optimizer(model, optim=optim)
        for number in range(2):
            output = train_step(
                model,
                optimizer,
                microbatches=(batch, batch),
                step=number,
                optim=optim,
                device=device,
            )
            metrics.add(output, step=number, epoch=0, lr=0.1, microbatches=(batch,))


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_step_reads_no_value(clip_norm):
    run_two_fake_steps(TinyModel(), clip_norm=clip_norm)


def test_reading_a_value_is_detected():
    class ReadingModel(TinyModel):
        def forward(self, *args):
            losses = super().forward(*args)
            losses["loss_box"].item()
            return losses

    with pytest.raises(Exception, match="_local_scalar_dense"):
        run_two_fake_steps(ReadingModel(), clip_norm=None)


def test_the_time_of_a_window_includes_the_wait_for_the_device(monkeypatch):
    def slow_device(row, *, worker):
        time.sleep(0.2)
        return row[None]

    monkeypatch.setattr(step, "gather_rows", slow_device)
    output = step.StepOutput((step.GRADIENT_NORM,), torch.ones(1))
    batch = SimpleNamespace(image_id=torch.tensor([1]))
    metrics = StepMetrics(WorkerContext())
    metrics.add(output, step=0, epoch=0, lr=0.1, microbatches=(batch,))
    summary = metrics.reduce()
    # A GPU finishes its queue while the host waits here; a checkpoint then restarts the clock.
    assert summary.seconds >= 0.2
