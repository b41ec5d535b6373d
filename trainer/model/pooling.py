"""From the vectors of all tokens to those that outputs are made of: one a sample, or those of chosen tokens."""

from typing import Literal

import torch
from torch import Tensor

Pooling = Literal["cls", "mean", "max", "last"]


def pool(tokens: Tensor, mask: Tensor, how: Pooling) -> Tensor:
    """Pools token vectors (B, T, D) to (B, D) over the tokens where the boolean `mask` (B, T) is true.

    `cls` takes the first token, `last` the last one, `mean` and `max` go over all of them; each sample has at least one
    token, and its padding comes after its tokens.
    """
    if how == "cls":
        return tokens[:, 0]
    if how == "last":
        last = (mask.sum(dim=1) - 1)[:, None, None]
        return tokens.gather(1, last.expand(-1, -1, tokens.shape[2])).squeeze(1)
    keep = mask.unsqueeze(-1)
    if how == "max":
        return tokens.masked_fill(~keep, float("-inf")).amax(dim=1)
    kept = tokens.masked_fill(~keep, 0.0)
    # In float32 at least, also under autocast: a half-precision sum over hundreds of tokens loses digits.
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    return (kept.sum(dim=1, dtype=dtype) / keep.sum(dim=1, dtype=dtype)).to(tokens.dtype)


def pool_samples(rows: Tensor, attention_mask: Tensor | None, token_index: Tensor | None, how: Pooling) -> Tensor:
    """Pools the token vectors of a micro-batch in either layout, (R, L, D), to one vector a sample, (B, D).

    Padded rows have the `attention_mask` (R, L) and are the samples; of packed ones `token_index` (B, T) says where
    each sample's tokens lie in the flattened rows, -1 past its end.
    """
    if token_index is None:
        assert attention_mask is not None
        return pool(rows, attention_mask.bool(), how)
    return pool(take_tokens(rows, token_index), token_index >= 0, how)


def take_tokens(rows: Tensor, index: Tensor) -> Tensor:
    """The vectors of (R, L, D) at flattened positions `index` of any shape S, as S + (D,).

    Where the index is -1, for no token, it is the first vector.
    """
    return rows.flatten(0, 1)[index.clamp(min=0)]
