"""An exponential moving average of the weights, kept next to the model.

Source: Polyak and Juditsky 1992; the decay warms up as in TensorFlow's ExponentialMovingAverage.
"""

from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn

from trainer.protocols import Loss, StateDict

_Module = TypeVar("_Module", bound=nn.Module)


class Ema:
    """After each update: average <- d * average + (1 - d) * weights, with d = min(decay, (1 + t) / (10 + t)).

    t counts the updates before this one, so that early averages forget the random start. Parameters are averaged;
    buffers, floating-point or not, are copied: batch norm statistics are already averages.

    Args:
        model: The model to average.
        decay: The decay per update, in [0, 1).
        loss: The loss; its weights are averaged too, if it has some.

    Attributes:
        module: The averaged model, always in evaluation mode.
        loss: The averaged loss if it has weights, otherwise the loss itself.
        updates: The number of updates so far, t.
    """

    def __init__(self, model: nn.Module, decay: float, loss: Loss | None = None) -> None:
        assert 0 <= decay < 1
        self.module = _copy(model)
        self._averages_loss = has_weights(loss)
        self.loss = _copy(loss) if isinstance(loss, nn.Module) and self._averages_loss else loss
        self.decay = decay
        self.updates = 0
        self._source: nn.Module | None = None
        self._averages: list[Tensor] = []
        self._weights: list[Tensor] = []
        self._buffers: list[tuple[nn.Module, nn.Module, str]] = []

    @torch.no_grad()
    def update(self, model: nn.Module, loss: Loss | None = None) -> None:
        """Add the weights of `model`, and of `loss` if it has some, to the average."""
        if self._source is not model:  # searching a deep model for its weights takes longer than averaging a small one
            self._source = model
            pairs: list[tuple[nn.Module, nn.Module]] = [(self.module, model)]
            if self._averages_loss:
                assert isinstance(self.loss, nn.Module)
                assert isinstance(loss, nn.Module)
                pairs.append((self.loss, loss))
            self._averages, self._weights = (
                [parameter.detach() for pair in pairs for parameter in pair[side].parameters()] for side in (0, 1)
            )
            self._buffers = [names for pair in pairs for names in _find_buffers(*pair)]
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._averages, self._weights, 1 - decay)
        for average, module, name in self._buffers:
            average.get_buffer(name).copy_(module.get_buffer(name))
        self.updates += 1

    def state_dict(self) -> StateDict:
        """Return only the counter; the weights are in `module.state_dict()`."""
        return {"updates": self.updates}

    def load_state_dict(self, state: StateDict) -> None:
        """Restore what `state_dict` returned."""
        self.updates = int(state["updates"])


def has_weights(loss: object) -> bool:
    """Return whether a loss has parameters of its own."""
    return isinstance(loss, nn.Module) and next(loss.parameters(), None) is not None


def _copy(module: _Module) -> _Module:
    return deepcopy(module).eval().requires_grad_(False)


def _find_buffers(average: nn.Module, module: nn.Module) -> list[tuple[nn.Module, nn.Module, str]]:
    """Return the modules that own a buffer, with its name: a module may replace its buffer by a new tensor."""
    owners = zip(average.modules(), module.modules(), strict=True)
    return [(mine, theirs, name) for mine, theirs in owners for name, _ in mine.named_buffers(recurse=False)]
