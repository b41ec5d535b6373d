"""Models whose exports are wrong, each in one typical way."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.model.text_encoder import TextEncoder


class Broken(TextEncoder):
    """A model that is right except when an exporter runs it.

    Args:
        vocab_size, num_outputs, max_length: See `TextEncoder`.
        broken_in: The exporter in which it is broken: tracing, or capturing a program.
        options: See `TextEncoder`.
    """

    def __init__(
        self,
        vocab_size: int,
        num_outputs: int,
        max_length: int,
        *,
        broken_in: Literal["trace", "program"],
        **options: Any,
    ) -> None:
        super().__init__(vocab_size, num_outputs, max_length, **options)
        self.broken_in = broken_in

    def broken(self) -> bool:
        """Return whether the exporter is running the model."""
        return torch.jit.is_tracing() if self.broken_in == "trace" else torch.compiler.is_exporting()


class FrozenDimension(Broken):
    """Supports only one length."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **packed: Tensor) -> Tensor:
        if self.broken():
            input_ids = input_ids + torch.zeros(int(input_ids.shape[1]), dtype=torch.int64)
        return super().forward(input_ids, attention_mask, **packed)


class DroppedMask(Broken):
    """Ignores the mask."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **packed: Tensor) -> Tensor:
        if self.broken():
            attention_mask = torch.ones_like(input_ids)
        return super().forward(input_ids, attention_mask, **packed)


class DropoutLeftOn(Broken):
    """Applies dropout in evaluation mode."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **packed: Tensor) -> Tensor:
        output = super().forward(input_ids, attention_mask, **packed)
        return F.dropout(output, 0.5, training=True) if self.broken() else output


class SizeAsNumber(Broken):
    """Reads a size as a Python number, which a trace records as a constant."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **packed: Tensor) -> Tensor:
        output = super().forward(input_ids, attention_mask, **packed)
        size: Any = input_ids.shape[1]
        return output * (int(size) / size) if self.broken() else output
