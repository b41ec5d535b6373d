"""One vector a sample from the vectors of its tokens."""

from typing import Literal

import torch
from torch import Tensor

Pooling = Literal["cls", "mean", "max"]


def pool(tokens: Tensor, mask: Tensor, how: Pooling) -> Tensor:
    """Pools token vectors (B, T, D) to (B, D) over the tokens where the boolean `mask` (B, T) is true.

    `cls` takes the first token, `mean` and `max` go over all of them; each sample has at least one token.
    """
    if how == "cls":
        return tokens[:, 0]
    keep = mask.unsqueeze(-1)
    if how == "max":
        return tokens.masked_fill(~keep, float("-inf")).amax(dim=1)
    kept = tokens.masked_fill(~keep, 0.0)
    # In float32 also under autocast: a half-precision sum over hundreds of tokens loses digits.
    return (kept.sum(dim=1, dtype=torch.float32) / keep.sum(dim=1, dtype=torch.float32)).to(tokens.dtype)
