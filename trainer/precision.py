"""Numeric precision of the forward and backward pass: float32, or autocast to bfloat16, or to float16 with a scaler."""

from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor

PrecisionName = Literal["fp32", "bf16", "fp16"]

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

MIN_SCALE = 2.0**-14
"""Gradients that overflow even at this scale overflow at any: the run has diverged, and does not merely search."""


class Precision:
    """Autocast and, for float16, the scaler of Micikevicius et al. 2018, "Mixed precision training".

    Weights, gradients after `unscale`, the loss and the optimizer stay in float32.
    """

    def __init__(self, name: PrecisionName, device: torch.device) -> None:
        self.name = name
        self._device = device
        self._scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16", init_scale=2.0**14)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass."""
        dtype = _TYPES.get(self.name)
        return torch.autocast(self._device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of `loss`, shape (), scaled until `unscale`."""
        torch.autograd.backward(self._scaler.scale(loss))

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Makes the gradients those of the loss itself; between the last `backward` and clipping."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Updates the weights; False where the scale was too large for float16: only the scale has moved then."""
        before = self.scale
        self._scaler.step(optimizer)
        self._scaler.update()
        return self.scale >= before

    @property
    def can_lower_scale(self) -> bool:
        """Whether gradients that are not finite may come from the scale alone."""
        return self.name == "fp16" and self.scale > MIN_SCALE

    @property
    def scale(self) -> float:
        """What the loss is multiplied by; 1 without a scaler."""
        return self._scaler.get_scale()

    def state_dict(self) -> dict[str, Any]:
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self._scaler.load_state_dict(state)
