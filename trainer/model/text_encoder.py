"""A pre-norm transformer encoder over tokens, pooled per sample, with a linear head.

Source: Vaswani et al. 2017, "Attention is all you need"; pre-norm after Xiong et al. 2020, "On layer normalization in
the transformer architecture".
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.errors import ConfigError, explain
from trainer.model.pooling import pool


class Block(nn.Module):
    """Self-attention and a feed-forward layer, each normalized before and added to its input."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(dim)
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.attention_output = nn.Linear(dim, dim)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Hidden states (R, L, D) to the same shape; `mask` is boolean and broadcasts to (R, heads, L, L)."""
        normed = self.query_key_value(self.attention_norm(hidden))
        # Head size by -1: the exported graph then keeps R and L symbolic and nothing else.
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in normed.chunk(3, dim=-1))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        hidden = hidden + self.dropout(self.attention_output(attended.transpose(1, 2).flatten(2)))
        output: Tensor = hidden + self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))
        return output


class TextEncoder(nn.Module):
    """Token ids to outputs, one row a sample.

    It takes a micro-batch in either layout and gives the same output for both:

    * padded: `input_ids` (B, T) and `attention_mask` (B, T), one sample a row;
    * packed: `input_ids` (R, L) with several samples a row, `position_ids` (R, L) restarting at each sample,
      `sequence_ids` (R, L) equal inside a sample and different between neighbours, and `token_index` (B, T),
      where each sample's tokens lie in the flattened rows (-1 where a sample is shorter than T).

    Args:
        vocab_size: Token ids are below it.
        num_outputs: Columns of the output, C.
        max_length: Positions it knows; no sample is longer.
        dim: Width of the hidden states, D.
        depth: Number of blocks.
        heads: Attention heads; divides `dim`.
        hidden: Width of the feed-forward layers.
        dropout: Probability, on embeddings and on what each block adds.
        pooling: How the tokens of a sample become one vector.
    """

    def __init__(
        self,
        vocab_size: int,
        num_outputs: int,
        max_length: int,
        *,
        dim: int,
        depth: int,
        heads: int,
        hidden: int,
        dropout: float,
        pooling: Literal["cls", "mean", "max"],
    ) -> None:
        super().__init__()
        _check(dim=dim, depth=depth, heads=heads, hidden=hidden, dropout=dropout)
        self.pooling = pooling
        self.token_embedding = nn.Embedding(vocab_size, dim)
        self.position_embedding = nn.Embedding(max_length, dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(dim, heads, hidden, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_outputs)
        for embedding in (self.token_embedding, self.position_embedding):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        token_index: Tensor | None = None,
    ) -> Tensor:
        """Outputs (B, C), in float32 or autocast's type."""
        if attention_mask is None:
            assert position_ids is not None
            assert sequence_ids is not None
            assert token_index is not None
            mask = sequence_ids[:, None, :, None] == sequence_ids[:, None, None, :]
        else:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)
            mask = attention_mask.bool()[:, None, None, :]
        hidden = self.dropout(self.token_embedding(input_ids) + self.position_embedding(position_ids))
        for block in self.blocks:
            hidden = block(hidden, mask)
        hidden = self.norm(hidden)
        if token_index is None:
            assert attention_mask is not None
            return self._head(pool(hidden, attention_mask.bool(), self.pooling))
        tokens = hidden.flatten(0, 1)[token_index.clamp(min=0)]
        return self._head(pool(tokens, token_index >= 0, self.pooling))

    def _head(self, pooled: Tensor) -> Tensor:
        output: Tensor = self.head(pooled)
        return output


def _check(*, dim: int, depth: int, heads: int, hidden: int, dropout: float) -> None:
    messages = [
        explain(name, "must be at least 1", value=value)
        for name, value in (("dim", dim), ("depth", depth), ("heads", heads), ("hidden", hidden))
        if value < 1
    ]
    if heads >= 1 and dim % heads:
        messages.append(explain("heads", f"must divide dim ({dim})", value=heads))
    if not 0 <= dropout < 1:
        messages.append(explain("dropout", "must be in [0, 1)", value=dropout))
    if messages:
        raise ConfigError(*messages)
