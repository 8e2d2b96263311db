"""Dispatch modes that check a GPU training step without a GPU."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode


class ForbidHostTensors(TorchDispatchMode):
    """Raises if an operation uses a CPU tensor: copying it to a GPU would also synchronize."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in (*args, out):
            if isinstance(value, torch.Tensor) and value.device.type == "cpu":
                raise AssertionError(f"{func} works on the host")
        return out


def fake_gpu() -> FakeTensorMode:
    """Return a mode that builds and runs a model on a GPU that need not exist.

    Backbones are probed on the meta device, where torch 2.11 makes real tensors even in this mode.
    """
    return FakeTensorMode(allow_non_fake_inputs=True)
