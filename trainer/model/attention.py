"""Attention in rows that hold several samples: with a mask, or with a kernel for samples of different lengths.

Both give the same result up to rounding. A boolean mask works everywhere, but rules out the flash kernel on CUDA. The
kernel takes all tokens in one sequence and the position at which each sample starts, and computes nothing else.

Source: Dao 2023, "FlashAttention-2", https://arxiv.org/abs/2307.08691.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

logger = logging.getLogger(__name__)

_MAX_HEAD_SIZE: Final = 256
_HEAD_SIZE_UNIT: Final = 8


@dataclass(frozen=True)
class Kernel:
    """Attention over samples of different lengths.

    Attributes:
        name: Its name, for the log.
        attend: A function with the parameters of `torch.nn.attention.varlen.varlen_attn`.
        dtypes: The types that it computes in.
    """

    name: str
    attend: Callable[..., Tensor]
    dtypes: frozenset[torch.dtype]


def _flash_attention() -> Kernel | None:
    """Return PyTorch's kernel, or None if this GPU has none.

    With `torch.use_deterministic_algorithms(True, warn_only=False)` its backward pass adds up in a fixed order too.
    """
    if (
        torch.version.hip is not None
        or not torch.backends.cuda.is_flash_attention_available()
        or torch.cuda.get_device_capability() < (8, 0)
    ):
        return None
    from torch.nn.attention import varlen

    # A sample's result would otherwise depend on the longest sample. PyTorch 2.11 does not have the parameter.
    attend: Callable[..., Any] = varlen.varlen_attn
    if "num_splits" in inspect.signature(attend).parameters:
        attend = partial(attend, num_splits=1)
    return Kernel("flash", attend, frozenset({torch.float16, torch.bfloat16}))


KERNELS: Final[dict[str, Kernel | None]] = {}
"""The kernel of each type of device, if it has one. Without a kernel, rows have a mask."""


def find_kernel(device_type: str) -> Kernel | None:
    """Return the kernel of a type of device, if it has one.

    A compiled program reads only `KERNELS`: the first call must come before it, because it asks the device.
    """
    if device_type == "cuda" and device_type not in KERNELS:
        KERNELS[device_type] = _flash_attention()
    return KERNELS.get(device_type)


def sample_starts(
    sequence_ids: Tensor, token_index: Tensor | None, *, head_size: int, dtype: torch.dtype, dropout: float = 0.0
) -> Tensor | None:
    """Return where the samples of packed rows start, to be passed to `attend` in place of a mask.

    The padding at the end of a row is a sample of its own, because the gradients of tokens outside of all samples would
    be NaN. Nothing waits for the device: the number of samples comes from a shape. It is rounded up to a power of two
    with empty samples, so that a compiled block sees few shapes.

    Args:
        sequence_ids: Numbers of the samples in packed rows (R, L).
        token_index: Positions of the tokens of each of the B samples (B, T); None if the batch does not contain them.
        head_size: Width of an attention head.
        dtype: Type of the weights; autocast changes it.
        dropout: Probability of dropout inside attention, which no kernel supports.

    Returns:
        int32 (1, 1, 1, N + 1), positions in the flattened rows, ending with R * L, possibly several times. It has four
        dimensions like a mask, because models of transformers pass on any such mask. None if a mask is needed.
    """
    device = sequence_ids.device
    kernel = find_kernel(device.type)
    if kernel is None:
        return None
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else dtype
    obstacle = None
    if dtype not in kernel.dtypes:
        obstacle = f"the type is {str(dtype).removeprefix('torch.')}"
    elif head_size % _HEAD_SIZE_UNIT or head_size > _MAX_HEAD_SIZE:
        obstacle = f"a head has {head_size} features, which is no multiple of {_HEAD_SIZE_UNIT} up to {_MAX_HEAD_SIZE}"
    elif dropout > 0:
        obstacle = f"attention has a dropout of {dropout}"
    elif token_index is None:
        obstacle = "the batch has no token_index"
    if not torch.compiler.is_compiling():
        _log_once(f"variable-length ({kernel.name})" if obstacle is None else f"masked, because {obstacle}")
    if obstacle is not None or token_index is None:
        return None
    limit = 1 << (token_index.shape[0] + sequence_ids.shape[0] - 1).bit_length()
    is_first = torch.ones_like(sequence_ids, dtype=torch.bool)
    is_first[:, 1:] = sequence_ids[:, 1:] != sequence_ids[:, :-1]
    numbers = is_first.flatten().cumsum(0)
    sample_numbers = torch.arange(1, limit + 2, device=device)
    return torch.searchsorted(numbers, sample_numbers, out_int32=True)[None, None, None]


@cache
def _log_once(message: str) -> None:
    logger.info("attention: %s", message)


def same_sample(sequence_ids: Tensor) -> Tensor:
    """Return the mask of packed rows with samples `sequence_ids` (R, L): boolean (R, 1, L, L)."""
    return sequence_ids[:, None, :, None] == sequence_ids[:, None, None, :]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """Return softmax(query key^T * scale) value of each head (R, heads, L, D), for inputs of this shape.

    Args:
        query: The queries.
        key: The keys.
        value: The values.
        mask: Boolean, broadcastable to (R, heads, L, L): True if a position (row) may attend to another (column). Or
            the result of `sample_starts`: each position attends to its own sample. None allows all.
        causal: Let each position attend only to itself and to earlier positions; ignored if `mask` is boolean.
        window: Largest distance between two positions that may attend to each other; only with `sample_starts`.
        scale: Factor of the scores; None is D ** -0.5.
    """
    if mask is None or mask.dtype != torch.int32:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal and mask is None, scale=scale
        )
    device_type = query.device.type
    kernel = find_kernel(device_type)
    assert kernel is not None, "it has made the mask"
    num_rows, _, width, _ = query.shape
    # As `scaled_dot_product_attention` does: rotary positions, for example, are computed in float32.
    dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else query.dtype
    flat = [part.transpose(1, 2).flatten(0, 1).to(dtype) for part in (query, key, value)]
    left = -1 if window is None else window
    limits = (left, 0 if causal else left)
    starts = mask.flatten()
    attended = kernel.attend(*flat, starts, starts, width, width, scale=scale, window_size=limits)
    return attended.view(num_rows, width, *attended.shape[1:]).transpose(1, 2)
