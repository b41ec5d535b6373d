"""Numeric precision of forward and backward: float32, TF32, or autocast to bfloat16 or to float16 with loss scaling."""

from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor

from trainer.protocols import StateDict

PrecisionName = Literal["fp32", "tf32", "bf16", "fp16"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

MIN_SCALE = 2.0**-14
"""Gradients that overflow even at this loss scale overflow at any: the run has diverged."""


class Precision:
    """Autocast and, for float16, the loss scaler of Micikevicius et al. 2018, "Mixed precision training".

    The weights, the gradients after `unscale`, the loss and the optimizer stay in float32. On CUDA, `tf32` rounds the
    factors of float32 matrix products and convolutions to 10 bits of mantissa, and the other precisions do not: this
    holds for the whole process, until the next `Precision`.

    Args:
        name: The precision.
        device: The device of the model.
    """

    def __init__(self, name: PrecisionName, device: torch.device) -> None:
        self.name = name
        self._device = device
        self._scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16", init_scale=2.0**14)
        if device.type == "cuda":
            # `torch.compile` cannot read the settings of the newer interface, `fp32_precision`.
            torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
            torch.backends.cudnn.allow_tf32 = name == "tf32"

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of a forward pass."""
        dtype = _DTYPES.get(self.name)
        return torch.autocast(self._device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`, shape (); they are scaled until `unscale`."""
        torch.autograd.backward(self._scaler.scale(loss))

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the loss scale, after the last `backward` and before clipping."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Update the weights. Return False if gradients overflowed in float16: then only the scale was lowered."""
        before = self.scale
        self._scaler.step(optimizer)
        self._scaler.update()
        return self.scale >= before

    @property
    def can_lower_scale(self) -> bool:
        """True if gradients may be infinite only because of the loss scale."""
        return self.name == "fp16" and self.scale > MIN_SCALE

    @property
    def scale(self) -> float:
        """The factor on the loss; 1 without a scaler."""
        return self._scaler.get_scale()

    def state_dict(self) -> StateDict:
        """Return the state of the scaler; empty without one."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: StateDict) -> None:
        """Restore what `state_dict` returned."""
        if state:
            self._scaler.load_state_dict(state)
