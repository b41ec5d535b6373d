"""An exponential moving average of the weights, kept beside the model.

Source: Polyak and Juditsky 1992; the decay's warm-up is that of Abadi et al.'s TensorFlow ExponentialMovingAverage.
"""

from copy import deepcopy
from typing import Any

import torch
from torch import nn


class Ema:
    """After each update: average <- d * average + (1 - d) * weights, with d = min(decay, (1 + t) / (10 + t)).

    t counts the updates before this one, so that early averages forget the random start. Parameters are averaged;
    buffers, floating or not, are copied: a batch norm's statistics are averages already.

    Attributes:
        module: The averaged model, always in evaluation mode.
        updates: How many updates it has seen, t.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        assert 0 <= decay < 1
        self.module = deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes the weights of `model` into the average."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages = [average.detach() for average in self.module.parameters()]
        weights = [weight.detach() for weight in model.parameters()]
        torch._foreach_lerp_(averages, weights, 1 - decay)
        for average, buffer in zip(self.module.buffers(), model.buffers(), strict=True):
            average.copy_(buffer)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """The counter alone; the weights are `module.state_dict()`."""
        return {"updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = int(state["updates"])
