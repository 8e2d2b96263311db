import threading

import pytest
import torch

from pipeline.errors import StorageError
from pipeline.training import checkpoint
from pipeline.training.checkpoint_writer import CheckpointWriter
from pipeline.training.optim import build_optimizer
from tests.pipeline.training.tiny_training import TinyModel


@pytest.fixture
def parts(job):
    model = TinyModel()
    optimizer = build_optimizer(model, optim=job.recipe.optim)
    _train(model, optimizer)
    return model, optimizer


def _train(model, optimizer):
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.update(lr=0.1, gradient_norm=torch.tensor(1.0))


def _save(writer, job, parts, *, step, then=lambda: None):
    model, optimizer = parts
    return writer.save(
        job.run_uri, model=model, optimizer=optimizer, step=step, epoch=0, identity=job.identity,
        then=then,
    )  # fmt: skip


def test_a_checkpoint_holds_the_state_of_its_step(job, parts, monkeypatch):
    """Byte for byte that of a save that the training waits for."""
    model, optimizer = parts
    direct = checkpoint.save(
        job.run_uri + "-2", model=model, optimizer=optimizer, step=1, epoch=0,
        identity=job.identity,
    )  # fmt: skip
    expected = checkpoint.storage.read_bytes(f"{direct.uri}/checkpoint.pt")
    trained, save = threading.Event(), checkpoint.save

    def save_late(*args, **kwargs):
        assert trained.wait(timeout=30)
        return save(*args, **kwargs)

    monkeypatch.setattr(checkpoint, "save", save_late)
    writer = CheckpointWriter()
    ref = _save(writer, job, parts, step=1)
    _train(*parts)
    torch.rand(3)
    trained.set()
    writer.wait()
    assert checkpoint.find_latest(job.run_uri) == ref
    assert checkpoint.storage.read_bytes(f"{ref.uri}/checkpoint.pt") == expected


def test_checkpoints_follow_each_other_and_reuse_their_memory(job, parts):
    writer, order, before = CheckpointWriter(), [], {}
    for step in (1, 2, 3):
        ref = _save(writer, job, parts, step=step, then=lambda step=step: order.append(step))
        memory = {name: value.data_ptr() for name, value in writer._copies["model"].items()}
        assert before in ({}, memory)
        assert order[: step - 1] == list(range(1, step))
        before = memory
        _train(*parts)
    assert writer.close() is None
    assert order == [1, 2, 3]
    assert checkpoint.find_latest(job.run_uri) == ref


def test_a_failed_write_is_an_error_of_the_next_one(job, parts, monkeypatch):
    def fail(*_, **__):
        raise StorageError("disk full")

    monkeypatch.setattr(checkpoint, "save", fail)
    writer = CheckpointWriter()
    _save(writer, job, parts, step=1)
    with pytest.raises(StorageError, match="disk full"):
        _save(writer, job, parts, step=2)
    _save(writer, job, parts, step=2)
    assert isinstance(writer.close(), StorageError)
