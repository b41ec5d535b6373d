"""Logits that are not computed until the loss needs them, in chunks of rows: a language model's are its largest tensor.

For N targets and a vocabulary of V tokens, logits (N, V) and their gradient are never stored, only a chunk of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trainer.protocols import DefersLogits

CHUNK_ELEMENTS: Final = 2**23
"""Logits of a chunk on a CPU: 32 MiB in float32."""
ACCELERATOR_FACTOR: Final = 8
"""A chunk on a GPU is this many times as large, so that its kernels take longer than their launches."""
MIN_ROWS: Final = 128
"""Rows of a chunk if the vocabulary is large: each chunk reads and writes the gradient of all weights once."""


class DeferredLogits(NamedTuple):
    """The logits features @ weight.T + bias, before they are computed.

    Attributes:
        features: (..., D), in the type in which the logits are computed.
        weight: (V, D).
        bias: (V,), or None.
    """

    features: Tensor
    weight: Tensor
    bias: Tensor | None

    def compute(self) -> Tensor:
        """Return the logits (..., V)."""
        dtype = self.features.dtype
        return F.linear(self.features, self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype))

    def chunks(self, target: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the logits of some rows and their targets (...,), in order; a single chunk has the original shape."""
        if self.is_small():
            yield self.compute(), target
            return
        features, targets = self.features.flatten(0, -2), target.flatten()
        for rows in _slices(len(features), self.weight):
            yield self._replace(features=features[rows]).compute(), targets[rows]

    def is_small(self) -> bool:
        """Return whether the logits fit in one chunk."""
        num_rows = self.features.shape[:-1].numel()
        return num_rows <= _rows_of_chunk(self.weight)


def defer_logits(features: Tensor, weight: Tensor, bias: Tensor | None) -> DeferredLogits:
    """Return the deferred output of a linear layer; they are computed in autocast's type if it is on."""
    device = features.device.type
    if torch.is_autocast_enabled(device):
        features = features.to(torch.get_autocast_dtype(device))
    return DeferredLogits(features, weight, bias)


@contextmanager
def deferral(model: nn.Module, *, deferred: bool) -> Iterator[None]:
    """Let a model defer its logits, or compute them, inside the block; other models stay as they are."""
    if not isinstance(model, DefersLogits):
        yield
        return
    before, model.defer_logits = model.defer_logits, deferred
    try:
        yield
    finally:
        model.defer_logits = before


def sum_in_chunks(loss: Callable[[Tensor, Tensor], Tensor], output: DeferredLogits, target: Tensor) -> Tensor:
    """Return the loss of deferred logits, shape (); the loss is a sum over rows.

    If there are several chunks, each chunk's gradients are computed with its loss, so its logits are computed once. The
    result differs from the loss of all logits only by the rounding of sums. In float16 the logits are computed at once:
    the gradients would be rounded to 0 before they are multiplied by the loss scale.

    Chunks over tokens after Wijmans et al. 2024, "Cut your losses in large-vocabulary language models",
    https://arxiv.org/abs/2411.09009; gradients in the forward pass after Hsu et al. 2024, "Liger kernel",
    https://arxiv.org/abs/2410.10989.
    """
    if output.is_small() or output.features.dtype == torch.float16:
        return loss(output.compute(), target)
    if not torch.is_grad_enabled():
        return torch.stack([loss(*chunk) for chunk in output.chunks(target)]).sum()
    apply: Any = _ChunkedLoss.apply
    features = output.features.flatten(0, -2)
    total: Tensor = apply(features, output.weight, output.bias, target.flatten(), loss)
    return total


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        loss: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        dtype = features.dtype
        matrix, offset = weight.to(dtype), None if bias is None else bias.to(dtype)
        grad_features, grad_weight, grad_bias = (
            torch.zeros_like(each) if each is not None and needed else None
            for each, needed in zip((features, weight, bias), ctx.needs_input_grad, strict=False)
        )
        totals = []
        logits = features.new_empty(min(len(features), _rows_of_chunk(weight)), len(weight))
        for rows in _slices(len(features), weight):
            chunk = features[rows]
            out = logits[: len(chunk)]
            torch.mm(chunk, matrix.T, out=out) if offset is None else torch.addmm(offset, chunk, matrix.T, out=out)
            with torch.enable_grad():
                leaf = out.detach().requires_grad_()
                total = loss(leaf, target[rows])
            (gradient,) = torch.autograd.grad(total, leaf)
            totals.append(total.detach())
            if grad_features is not None:
                torch.mm(gradient, matrix, out=grad_features[rows])
            if grad_weight is not None:
                # In the weight's type, so that chunks add up as exactly as micro-batches do.
                _add_product(grad_weight, gradient.T, chunk)
            if grad_bias is not None:
                grad_bias += gradient.sum(dim=0, dtype=grad_bias.dtype)
        ctx.save_for_backward(grad_features, grad_weight, grad_bias)
        return torch.stack(totals).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        # In place: the gradient of the weights may be as large as the rest of the model.
        gradients = (None if gradient is None else gradient.mul_(scale) for gradient in ctx.saved_tensors)
        return *gradients, None, None


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _rows_of_chunk(weight: Tensor) -> int:
    elements = CHUNK_ELEMENTS * (1 if weight.device.type == "cpu" else ACCELERATOR_FACTOR)
    return max(MIN_ROWS, elements // max(1, len(weight)))


def _slices(num_rows: int, weight: Tensor) -> Iterator[slice]:
    step = _rows_of_chunk(weight)
    for start in range(0, num_rows, step):
        yield slice(start, start + step)
