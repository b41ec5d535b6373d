"""What a loss over classes needs of its logits, one row at a time, with a closed-form gradient.

For logits x of C classes with p = softmax(x), a target y and factors v of the classes,

    surprise = -log p[y]                  d surprise / d x = p - onehot(y)
    spread   = -sum_c v[c] * log p[c]     d spread / d x   = p * sum(v) - v

Every loss over classes is a function of these two numbers a row, so autograd sees vectors (B,) and never a (B, C)
tensor of its own. Both passes go over the rows in pieces and work in place: nothing of size (B, C) is made but the
gradient itself, where `torch.nn.functional.cross_entropy` makes three.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_PIECE_ELEMENTS = 2**23
"""Of one piece: 32 MiB in float32. Smaller ones would stay in the cache, but each pass over a piece waits for all
threads, and that is what costs on a machine that has other things to do."""


def surprise_and_spread(
    logits: Tensor, target: Tensor, factors: Tensor | None, *, spread: bool
) -> tuple[Tensor, Tensor | None]:
    """Each row's surprise and spread, (B,), in float32 or in float64 where the logits are.

    Args:
        logits: (B, C), of any floating type.
        target: Classes (B,), all of them valid.
        factors: v, (C,); None for ones.
        spread: Whether the spread is wanted, which takes one pass more; None is returned where it is not.
    """
    apply: Any = _SurpriseAndSpread.apply
    found: tuple[Tensor, Tensor | None] = apply(logits, target, factors, spread)
    return found


class _SurpriseAndSpread(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, factors: Tensor | None, spread: bool
    ) -> tuple[Tensor, Tensor | None]:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        surprises = logits.new_empty(len(logits), dtype=dtype)
        spreads = logits.new_empty(len(logits), dtype=dtype) if spread else None
        for piece, workspace in _pieces(logits, dtype):
            log_p = torch.log_softmax(logits[piece], 1, dtype=dtype, out=workspace)
            surprises[piece] = -log_p.gather(1, target[piece, None]).squeeze(1)
            if spreads is not None:
                # Not a matrix product: autocast would round it.
                spreads[piece] = -(log_p if factors is None else log_p.mul_(factors.to(dtype))).sum(dim=1)
        ctx.save_for_backward(logits, target, factors)
        return surprises, spreads

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_surprise: Tensor, by_spread: Tensor | None) -> tuple[Tensor, None, None, None]:
        logits, target, factors = ctx.saved_tensors
        dtype = by_surprise.dtype
        v = by_surprise.new_ones(1) if factors is None else factors.to(dtype)
        of_p = by_surprise
        if by_spread is not None:
            of_p = by_surprise + by_spread * (logits.shape[1] if factors is None else v.sum())
        gradient = torch.empty_like(logits)
        for piece, workspace in _pieces(logits, dtype):
            same = dtype == logits.dtype
            # Softmax once more rather than saved: it reads what is there and writes where the gradient goes.
            p = torch.softmax(logits[piece], 1, dtype=dtype, out=gradient[piece] if same else workspace)
            p.mul_(of_p[piece, None])
            if by_spread is not None:
                p.addcmul_(by_spread[piece, None], v, value=-1)
            p[torch.arange(len(p), device=p.device), target[piece]] -= by_surprise[piece]
            if not same:
                gradient[piece] = p
        return gradient, None, None, None


def _pieces(logits: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the rows, each with memory of its shape; it is the same memory for all."""
    num_rows, num_classes = logits.shape
    step = max(1, _PIECE_ELEMENTS // max(1, num_classes))
    workspace = logits.new_empty(min(step, num_rows), num_classes, dtype=dtype)
    for start in range(0, num_rows, step):
        yield slice(start, start + step), workspace[: num_rows - start]
