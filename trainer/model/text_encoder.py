"""A pre-norm transformer encoder over tokens, with a linear head on samples or on tokens.

Source: Vaswani et al. 2017, "Attention is all you need"; pre-norm after Xiong et al. 2020, "On layer normalization in
the transformer architecture".
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from trainer.errors import raise_if_any
from trainer.model.attention import Block, stack_faults
from trainer.model.pooling import pool_samples, take_tokens


class TextEncoder(nn.Module):
    """Token ids to outputs, one row a sample, or one a token.

    It takes a micro-batch in either layout and gives the same output for both:

    * padded: `input_ids` (B, T) and `attention_mask` (B, T), one sample a row;
    * packed: `input_ids` (R, L) with several samples a row, `position_ids` (R, L) restarting at each sample,
      `sequence_ids` (R, L) a number for each sample of a row, and, for outputs of samples,
      `token_index` (B, T), where each sample's tokens lie in the flattened rows (-1 where a sample is shorter than T).

    Outputs of tokens are those of all places of the rows, or of the places that `output_index` names: flattened
    positions of any shape S, -1 where no output is wanted (there stands that of the first place).

    Args:
        vocab_size: Token ids are below it.
        num_outputs: Columns of the output, C; None: the D features before the head are the output.
        max_length: Positions it knows; no sample is longer.
        output_level: Whether there is an output for each sample or for each token.
        num_token_types: Kinds of tokens; where there are several, each has an embedding that is added to its tokens.
        dim: Width of the hidden states, D.
        depth: Number of blocks.
        heads: Attention heads; divides `dim`.
        hidden: Width of the feed-forward layers.
        dropout: Probability, on embeddings and on what each block adds.
        pooling: How the tokens of a sample become one vector; of no effect on outputs of tokens.

    Raises:
        ConfigError: A value is out of range.
    """

    inputs: ClassVar[tuple[str, ...]] = ("tokens",)
    levels: ClassVar[tuple[str, ...]] = ("sample", "token")
    causal: ClassVar[bool] = False

    def __init__(
        self,
        vocab_size: int,
        num_outputs: int | None,
        max_length: int,
        output_level: Literal["sample", "token"] = "sample",
        num_token_types: int = 1,
        *,
        dim: int,
        depth: int,
        heads: int,
        hidden: int,
        dropout: float,
        pooling: Literal["cls", "mean", "max", "last"],
    ) -> None:
        super().__init__()
        raise_if_any(*stack_faults(dim=dim, depth=depth, heads=heads, hidden=hidden, dropout=dropout))
        self.output_level = output_level
        self.pooling = pooling
        self.token_embedding = nn.Embedding(vocab_size, dim)
        self.position_embedding = nn.Embedding(max_length, dim)
        self.token_type_embedding = nn.Embedding(num_token_types, dim) if num_token_types > 1 else None
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(dim, heads, hidden, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Identity() if num_outputs is None else nn.Linear(dim, num_outputs)
        for embedding in (self.token_embedding, self.position_embedding, self.token_type_embedding):
            if embedding is not None:
                nn.init.normal_(embedding.weight, std=0.02)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        token_index: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_index: Tensor | None = None,
    ) -> Tensor:
        """Outputs in float32 or autocast's type: (B, C) of samples, (R, L, C) or S + (C,) of tokens."""
        if attention_mask is None:
            assert position_ids is not None
            assert sequence_ids is not None
            mask = sequence_ids[:, None, :, None] == sequence_ids[:, None, None, :]
        else:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)
            mask = attention_mask.bool()[:, None, None, :]
        hidden = self.token_embedding(input_ids) + self.position_embedding(position_ids)
        if self.token_type_embedding is not None:
            assert token_type_ids is not None
            hidden = hidden + self.token_type_embedding(token_type_ids)
        hidden = self.dropout(hidden)
        for block in self.blocks:
            hidden = block(hidden, mask)
        hidden = self.norm(hidden)
        if self.output_level == "sample":
            hidden = pool_samples(hidden, attention_mask, token_index, self.pooling)
        elif output_index is not None:
            hidden = take_tokens(hidden, output_index)
        output: Tensor = self.head(hidden)
        return output
