"""The block that transformers are stacks of."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.errors import format_error
from trainer.model.checks import dropout_faults, size_faults


class Block(nn.Module):
    """Self-attention and a feed-forward layer, each normalized before and added to its input.

    Attention of one head, from queries (L, K) to keys and values (S, K): softmax(query key^T / sqrt(K)) value.

    Source: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762; pre-norm after Xiong et al. 2020,
    https://arxiv.org/abs/2002.04745.

    Args:
        dim: Width of the hidden states, D.
        heads: Attention heads; divides `dim`.
        hidden: Width of the feed-forward layer.
        dropout: Probability, on what attention and the feed-forward layer add.
        gelu: `none` for the exact GELU, `tanh` for its approximation (that of GPT-2).
    """

    def __init__(
        self, dim: int, heads: int, hidden: int, dropout: float, *, gelu: Literal["none", "tanh"] = "none"
    ) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(dim)
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.attention_output = nn.Linear(dim, dim)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(approximate=gelu), nn.Linear(hidden, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, mask: Tensor | None = None, *, causal: bool = False) -> Tensor:
        """Hidden states (R, L, D) to the same shape.

        Args:
            hidden: The hidden states.
            mask: Boolean, broadcasts to (R, heads, L, L): which position (row) attends to which (column).
            causal: In place of a mask: each position attends to itself and those before it.
        """
        query, key, value = self._project(hidden)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
        return self._add(hidden, attended)

    def extend(self, hidden: Tensor, mask: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The block on the next T positions of sequences whose first P positions it has seen.

        Args:
            hidden: Hidden states of the next positions (B, T, D).
            mask: Boolean, broadcasts to (B, heads, T, P + T).
            keys: Keys of the positions seen (B, heads, P, D / heads).
            values: Their values, of the same shape.

        Returns:
            Hidden states (B, T, D), and keys and values of all P + T positions.
        """
        query, key, value = self._project(hidden)
        keys, values = torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)
        attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        return self._add(hidden, attended), keys, values

    def _project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (R, heads, L, D / heads)."""
        normed = self.query_key_value(self.attention_norm(hidden))
        # Head size by -1: the exported graph then keeps R and L symbolic and nothing else.
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in normed.chunk(3, dim=-1))
        return query, key, value

    def _add(self, hidden: Tensor, attended: Tensor) -> Tensor:
        hidden = hidden + self.dropout(self.attention_output(attended.transpose(1, 2).flatten(2)))
        output: Tensor = hidden + self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))
        return output


def stack_faults(*, dim: int, depth: int, heads: int, hidden: int, dropout: float) -> list[str]:
    """In range: what a stack of `depth` blocks can be made of; a message for each value that is not."""
    uneven = heads >= 1 and dim % heads
    return [
        *size_faults(dim=dim, depth=depth, heads=heads, hidden=hidden),
        *([format_error("heads", f"must divide dim ({dim})", value=heads)] if uneven else []),
        *dropout_faults(dropout),
    ]
