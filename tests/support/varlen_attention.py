"""Attention over samples of different lengths, computed sample by sample: what a kernel computes, on any device."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.model import attention


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """Compute what `torch.nn.attention.varlen.varlen_attn` computes; tokens outside of all samples get NaN."""
    attended = torch.full_like(query, float("nan"))
    bounds = cu_seq_q.tolist()
    assert bounds == cu_seq_k.tolist()
    assert (query.ndim, cu_seq_q.dtype, cu_seq_q.ndim) == (3, torch.int32, 1)
    assert query.dtype == key.dtype == value.dtype
    for start, end in pairwise(bounds):
        assert 0 <= end - start <= max_q == max_k
        if start == end:
            continue
        distance = torch.arange(end - start)[:, None] - torch.arange(end - start)
        left, right = (end if side < 0 else side for side in window_size)
        mask = (distance <= left) & (-distance <= right)
        parts = (part[start:end].transpose(0, 1) for part in (query, key, value))
        # Out of place, so that gradients flow; the tokens before and after keep their values.
        piece = F.scaled_dot_product_attention(*parts, attn_mask=mask, scale=scale).transpose(0, 1)
        attended = torch.cat([attended[:start], piece, attended[end:]])
    return attended


def masked_varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """Compute the same without and with causal windows, in operations that `torch.compile` understands."""
    number = torch.searchsorted(cu_seq_q[1:].contiguous(), torch.arange(len(query), dtype=torch.int32), right=True)
    mask = number[:, None] == number
    parts = (part.transpose(0, 1) for part in (query, key, value))
    attended = F.scaled_dot_product_attention(
        *parts, attn_mask=mask.tril() if window_size[1] == 0 else mask, scale=scale
    )
    return attended.transpose(0, 1)


@contextmanager
def kernel_on_the_cpu(
    *dtypes: torch.dtype,
) -> Iterator[list[tuple[int, int]]]:
    """Let packed rows be computed sample by sample on the CPU.

    Args:
        dtypes: The types that the kernel computes in, if not any type that the tests use.

    Yields:
        A list that receives, for each call, the number of samples (with empty ones) and the largest distance to the
        right.
    """
    calls: list[tuple[int, int]] = []

    def recorded(*inputs: Tensor, **options: tuple[int, int]) -> Tensor:
        calls.append((len(inputs[3]) - 1, options["window_size"][1]))
        return varlen_attn(*inputs, **options)  # type: ignore[arg-type]

    every = (torch.float32, torch.float64, torch.bfloat16)
    kernel = attention.Kernel("reference", recorded, frozenset(dtypes or every))
    attention.KERNELS["cpu"] = kernel
    try:
        yield calls
    finally:
        del attention.KERNELS["cpu"]
