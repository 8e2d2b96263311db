"""A watch over a training step: no tensor of the host takes part in it."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode


class NothingFromTheHost(TorchDispatchMode):
    """Raises when a tensor of the host comes in: its copy to a GPU would be a wait too."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in (*args, out):
            if isinstance(value, torch.Tensor) and value.device.type == "cpu":
                raise AssertionError(f"{func} works on the host")
        return out


def pretended_gpu() -> FakeTensorMode:
    """A mode in which a model is built and run on a GPU that need not be there.

    Trunks are probed on the meta device, where torch 2.11 makes real tensors even in this mode.
    """
    return FakeTensorMode(allow_non_fake_inputs=True)
