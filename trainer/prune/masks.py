"""Weights that are 0 and stay so while the others are trained."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Masks:
    """Which elements of a model's weights stay. Without any mask nothing is pruned, and nothing is done.

    Training a model under masks is training the product of its weights and the masks, as `torch.nn.utils.prune` does by
    further parameters; here the parameters stay what they are, under their own names. So a gradient is 0 where a weight
    is pruned, also when its norm is taken and clipped; and because some updates mix the elements of a weight (Muon's),
    the weights are set to 0 again after each.

    Args:
        model: On its device; what is pruned becomes 0.
        kept: For some of its parameters whether an element stays, boolean, of the parameter's shape.
    """

    def __init__(self, model: nn.Module, kept: Mapping[str, Tensor]) -> None:
        parameters = dict(model.named_parameters())
        self._pruned = {name: (parameters[name], ~mask.to(parameters[name].device)) for name, mask in kept.items()}
        self.zero_weights()

    @torch.no_grad()
    def zero_weights(self) -> None:
        """After an update."""
        for parameter, pruned in self._pruned.values():
            parameter.masked_fill_(pruned, 0)

    @torch.no_grad()
    def zero_gradients(self) -> None:
        """Before anything is made of the gradients; what overflows there is of no consequence."""
        for parameter, pruned in self._pruned.values():
            if parameter.grad is not None:
                parameter.grad.masked_fill_(pruned, 0)

    def state_dict(self) -> dict[str, Tensor]:
        """The masks `kept`."""
        return {name: ~pruned for name, (_, pruned) in self._pruned.items()}

    def names(self) -> tuple[str, ...]:
        """The parameters that have a mask."""
        return tuple(self._pruned)
