"""An exponential moving average of the weights, kept beside the model.

Source: Polyak and Juditsky 1992; the decay's warm-up is that of Abadi et al.'s TensorFlow ExponentialMovingAverage.
"""

from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import nn

from trainer.protocols import Loss

_Module = TypeVar("_Module", bound=nn.Module)


class Ema:
    """After each update: average <- d * average + (1 - d) * weights, with d = min(decay, (1 + t) / (10 + t)).

    t counts the updates before this one, so that early averages forget the random start. Parameters are averaged;
    buffers, floating or not, are copied: a batch norm's statistics are averages already.

    Attributes:
        module: The averaged model, always in evaluation mode.
        loss: The averaged loss where it has weights, else the loss itself.
        updates: How many updates it has seen, t.
    """

    def __init__(self, model: nn.Module, decay: float, loss: Loss | None = None) -> None:
        assert 0 <= decay < 1
        self.module = _copied(model)
        self._follows_loss = has_weights(loss)
        self.loss = _copied(loss) if isinstance(loss, nn.Module) and self._follows_loss else loss
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module, loss: Loss | None = None) -> None:
        """Takes the weights of `model`, and of a `loss` that has some, into the average."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        _lerp(self.module, model, 1 - decay)
        if self._follows_loss:
            assert isinstance(self.loss, nn.Module)
            assert isinstance(loss, nn.Module)
            _lerp(self.loss, loss, 1 - decay)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """The counter alone; the weights are `module.state_dict()`."""
        return {"updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = int(state["updates"])


def has_weights(loss: object) -> bool:
    """Whether a loss has parameters of its own."""
    return isinstance(loss, nn.Module) and next(loss.parameters(), None) is not None


def _copied(module: _Module) -> _Module:
    return deepcopy(module).eval().requires_grad_(False)


def _lerp(average: nn.Module, module: nn.Module, share: float) -> None:
    averages = [parameter.detach() for parameter in average.parameters()]
    torch._foreach_lerp_(averages, [parameter.detach() for parameter in module.parameters()], share)
    for kept, buffer in zip(average.buffers(), module.buffers(), strict=True):
        kept.copy_(buffer)
