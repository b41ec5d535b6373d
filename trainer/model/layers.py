"""Layers that several models share: blocks of images, transformer blocks, token embeddings, pooling of tokens."""

from collections import OrderedDict
from typing import ClassVar, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.constraints import BelowOne, Count, Rule, validated
from trainer.deferred_logits import DeferredLogits, defer_logits
from trainer.model.attention import attend, same_sample, sample_starts

Pooling = Literal["cls", "mean", "max", "last"]

HEADS_DIVIDE_DIM: Final = Rule("dim % heads == 0", key="heads", problem="must divide dim ({dim})")


class ImageBlocks(nn.Module):
    """Base class of networks that run images through blocks, one after the other, and a head."""

    inputs: ClassVar[tuple[str, ...]] = ("images",)
    levels: ClassVar[tuple[str, ...]] = ("sample",)
    ends_with_head: ClassVar[tuple[str, ...]] = ("images",)
    blocks: nn.ModuleList
    head: nn.Module

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return outputs (B, C) of images (B, channels, H, W)."""
        values = pixel_values
        for block in self.blocks:
            values = block(values)
        output: Tensor = self.head(values)
        return output


def convolution_block(convolution: nn.Conv2d, activation: nn.Module, pooling: nn.Module) -> nn.Sequential:
    """Return a block of images: convolution, activation, pooling."""
    return nn.Sequential(OrderedDict(convolution=convolution, activation=activation, pooling=pooling))


def linear_block(before: int, after: int, activation: nn.Module) -> nn.Sequential:
    """Return a block of vectors; it flattens images (B, channels, H, W) and does not change vectors (B, D)."""
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), linear=nn.Linear(before, after), activation=activation))


class TransformerBlock(nn.Module):
    """Self-attention and a feed-forward layer, each with pre-norm and a residual connection.

    One attention head computes softmax(query key^T / sqrt(K)) value from queries (L, K), keys (S, K) and values (S, K).

    Source: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762; pre-norm after Xiong et al. 2020,
    https://arxiv.org/abs/2002.04745.

    Args:
        dim: Width of the hidden states, D.
        heads: Number of attention heads; divides `dim`.
        hidden: Width of the feed-forward layer.
        dropout: Dropout probability on the outputs of attention and of the feed-forward layer.
        gelu: `none` for the exact GELU, `tanh` for the approximation that GPT-2 uses.
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
        """Map hidden states (R, L, D) to hidden states of the same shape.

        Args:
            hidden: The hidden states.
            mask: Which positions may attend to which others; see `attend`.
            causal: Let each position attend only to itself and to earlier positions; ignored if `mask` is boolean.
        """
        query, key, value = self._project(hidden)
        attended = attend(query, key, value, mask, causal=causal)
        return self._add(hidden, attended)

    def extend(self, hidden: Tensor, mask: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run the block on the next T positions of sequences, given the keys and values of the first P positions.

        Args:
            hidden: Hidden states of the next positions (B, T, D).
            mask: Boolean, broadcastable to (B, heads, T, P + T).
            keys: Keys of the first positions (B, heads, P, D / heads).
            values: Values of the first positions, of the same shape.

        Returns:
            Hidden states (B, T, D), and the keys and values of all P + T positions.
        """
        query, key, value = self._project(hidden)
        keys, values = torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)
        attended = attend(query, keys, values, mask)
        return self._add(hidden, attended), keys, values

    def _project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each (R, heads, L, D / heads)."""
        normed = self.query_key_value(self.attention_norm(hidden))
        # With -1 as the head size, an exported graph keeps exactly R and L symbolic.
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in normed.chunk(3, dim=-1))
        return query, key, value

    def _add(self, hidden: Tensor, attended: Tensor) -> Tensor:
        hidden = hidden + self.dropout(self.attention_output(attended.transpose(1, 2).flatten(2)))
        output: Tensor = hidden + self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))
        return output


class TokenTransformer(nn.Module):
    """The modules that `TextEncoder` and `Decoder` share: embeddings, blocks, a final norm and a linear head.

    `TextEncoder` describes the arguments.

    Attributes:
        gelu: The GELU of the blocks; see `TransformerBlock`.
        defer_logits: See `DefersLogits`.
    """

    gelu: ClassVar[Literal["none", "tanh"]] = "none"
    defer_logits = False

    @validated(HEADS_DIVIDE_DIM)
    def __init__(
        self,
        vocab_size: int,
        num_outputs: int | None,
        max_length: int,
        output_level: Literal["sample", "token"] = "sample",
        num_token_types: int = 1,
        *,
        dim: Count,
        depth: Count,
        heads: Count,
        hidden: Count,
        dropout: BelowOne,
        pooling: Pooling,
    ) -> None:
        super().__init__()
        self.output_level = output_level
        self.pooling = pooling
        self.heads = heads
        self.token_embedding = nn.Embedding(vocab_size, dim)
        self.position_embedding = nn.Embedding(max_length, dim)
        self.token_type_embedding = nn.Embedding(num_token_types, dim) if num_token_types > 1 else None
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(TransformerBlock(dim, heads, hidden, dropout, gelu=self.gelu) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Identity() if num_outputs is None else nn.Linear(dim, num_outputs)
        self._initialize()

    def _initialize(self) -> None:
        for embedding in (self.token_embedding, self.position_embedding, self.token_type_embedding):
            if embedding is not None:
                nn.init.normal_(embedding.weight, std=0.02)

    def embed(self, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """Return the sum of token, position and type embeddings after dropout, (R, L, D)."""
        hidden = self.token_embedding(input_ids) + self.position_embedding(position_ids)
        if self.token_type_embedding is not None:
            assert token_type_ids is not None
            hidden = hidden + self.token_type_embedding(token_type_ids)
        embedded: Tensor = self.dropout(hidden)
        return embedded

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the embeddings of the tokens, without positions and types."""
        return self.token_embedding

    @property
    def self_attention(self) -> tuple[int, int]:
        """The number of self-attention layers and their width."""
        return len(self.blocks), self.position_embedding.embedding_dim

    def packed_mask(
        self, sequence_ids: Tensor, token_index: Tensor | None, attention_mask: Tensor | None, *, causal: bool
    ) -> Tensor | None:
        """Return what keeps the samples of packed rows apart; see `attend`."""
        weight = self.position_embedding.weight
        starts = sample_starts(sequence_ids, token_index, head_size=weight.shape[1] // self.heads, dtype=weight.dtype)
        if starts is not None:
            return starts
        if attention_mask is not None:  # one sample in each row
            return None if causal else attention_mask.bool()[:, None, None, :]
        mask = same_sample(sequence_ids)
        if causal:
            columns = torch.arange(sequence_ids.shape[1], device=sequence_ids.device)
            mask = mask & (columns[:, None] >= columns)
        return mask

    def select(
        self,
        hidden: Tensor,
        attention_mask: Tensor | None,
        token_index: Tensor | None,
        output_index: Tensor | None,
    ) -> Tensor:
        """Return what the head reads: pooled samples (B, D), all tokens (R, L, D), or chosen ones S + (D,)."""
        if self.output_level == "sample":
            return pool_samples(hidden, attention_mask, token_index, self.pooling)
        return hidden if output_index is None else take_tokens(hidden, output_index)

    def output_layer(self) -> tuple[Tensor, Tensor | None] | None:
        """Return the weight and the bias of the head; None if it is no plain linear layer, as with an adapter."""
        return (self.head.weight, self.head.bias) if type(self.head) is nn.Linear else None

    def outputs(self, features: Tensor) -> Tensor | DeferredLogits:
        """Return the outputs (..., C) of what the head reads (..., D), deferred if `defer_logits` asks for it."""
        layer = self.output_layer() if self.defer_logits else None
        if layer is not None:
            return defer_logits(features, *layer)
        output: Tensor = self.head(features)
        return output


def zero_padding(tokens: Tensor, keep: Tensor) -> Tensor:
    """Return `tokens` with 0 wherever the boolean `keep`, which broadcasts to them, is False.

    Padding may contain values that are not finite, which a product with 0 would not remove. Its gradient is 0.
    """
    # The gradient of `threshold(keep, 0)`, given the gradient `tokens` of its result, is `where(keep, tokens, 0)`. On a
    # CPU it takes as long as a product, half to a third of the time of `where` itself.
    kept: Tensor = torch.ops.aten.threshold_backward(tokens, keep.to(tokens.dtype), 0)
    return kept


def pool(tokens: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Pool token vectors (B, T, D) to (B, D) over the tokens for which the boolean `mask` (B, T) is True.

    `cls` takes the first token, `last` the last token; `mean` and `max` pool over all of them. Each sample has at least
    one token, and its padding comes after its tokens.
    """
    if pooling == "cls":
        return tokens[:, 0]
    if pooling == "last":
        last = (mask.sum(dim=1) - 1)[:, None, None]
        return tokens.gather(1, last.expand(-1, -1, tokens.shape[2])).squeeze(1)
    keep = mask.unsqueeze(-1)
    if pooling == "max":
        return tokens.masked_fill(~keep, float("-inf")).amax(dim=1)
    kept = zero_padding(tokens, keep)
    # At least float32, also under autocast: a half-precision sum over hundreds of tokens loses digits.
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    return (kept.sum(dim=1, dtype=dtype) / keep.sum(dim=1, dtype=dtype)).to(tokens.dtype)


def pool_samples(rows: Tensor, attention_mask: Tensor | None, token_index: Tensor | None, pooling: Pooling) -> Tensor:
    """Pool the token vectors of a padded or packed micro-batch, (R, L, D), to one vector per sample, (B, D).

    In a padded batch the rows are the samples and `attention_mask` (R, L) marks their tokens. In a packed batch
    `token_index` (B, T) contains the positions of each sample's tokens in the flattened rows, -1 after its end. A batch
    with both has one sample in each row.
    """
    if attention_mask is not None:
        return pool(rows, attention_mask.bool(), pooling)
    assert token_index is not None
    return pool(take_tokens(rows, token_index), token_index >= 0, pooling)


def take_tokens(rows: Tensor, index: Tensor) -> Tensor:
    """Return the vectors of (R, L, D) at flattened positions `index` of any shape S, as S + (D,).

    An index of -1 means no token; its vector is the first one.
    """
    # An embedding gives the bits of plain indexing, in a sixth of the time forward and in half of it backward.
    return F.embedding(index.clamp(min=0), rows.flatten(0, 1))
