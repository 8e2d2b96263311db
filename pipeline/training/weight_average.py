"""An exponential moving average of the weights, which is often better than the last weights.

torch.optim.swa_utils.AveragedModel does the same, but asks the device in every step whether it has
averaged before, and a step must not wait for the device.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """The average of a model's trained weights; everything else is the model's own.

    Args:
        model: whose weights are averaged, from now on.
        decay: share of the average that a step keeps. The first steps keep less, (1 + n) / (10 + n)
            after n of them, so that the random start is soon forgotten.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self._model, self._decay = model, decay
        self._weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._average = {name: p.detach().clone() for name, p in self._weights.items()}

    @torch.no_grad()
    def update(self, *, step: int) -> None:
        """Move the average towards the weights after a step, which is counted from 0."""
        kept = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(
            list(self._average.values()), [p.detach() for p in self._weights.values()], 1 - kept
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the whole model, with averaged weights."""
        state = self._model.state_dict()
        state.update(self._average)
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a state of the whole model."""
        for name, average in self._average.items():
            average.copy_(state[name])

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and the average; a second call exchanges them back."""
        for name, parameter in self._weights.items():
            before = parameter.detach().clone()
            parameter.copy_(self._average[name])
            self._average[name].copy_(before)
