"""A pre-norm transformer encoder over tokens, with a linear head on samples or on tokens."""

from typing import ClassVar

import torch
from torch import Tensor

from trainer.deferred_logits import DeferredLogits
from trainer.model.layers import TokenTransformer


class TextEncoder(TokenTransformer):
    """An encoder that maps token ids to one row of outputs per sample or per token.

    A micro-batch has one of two layouts, and a sample has the same output in both:

    * padded: `input_ids` (B, T) and `attention_mask` (B, T), one sample per row;
    * packed: `input_ids` (R, L) with several samples per row, `position_ids` (R, L) that restart at each sample,
      `sequence_ids` (R, L) with a number for each sample of a row, and `token_index` (B, T), the positions of each
      sample's tokens in the flattened rows (-1 after the end of a sample). Without `token_index` there are only
      token-level outputs, and no faster attention on CUDA. With an `attention_mask`, each row has one sample.

    Token-level outputs are returned for all positions of the rows, or for the flattened positions in `output_index` of
    any shape S; an index of -1 means that no output is needed (it returns the output of the first position).

    Source: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762; pre-norm after Xiong et al. 2020,
    https://arxiv.org/abs/2002.04745.

    Args:
        vocab_size: Number of token ids.
        num_outputs: Number of outputs, C; None returns the D features before the head.
        max_length: Number of positions; no sample is longer.
        output_level: `sample` for one output per sample, `token` for one output per token.
        num_token_types: Number of token types; with several, each token's type has an embedding too.
        dim: Width of the hidden states, D.
        depth: Number of blocks.
        heads: Number of attention heads; divides `dim`.
        hidden: Width of the feed-forward layers.
        dropout: Dropout probability on embeddings and in blocks.
        pooling: How the tokens of a sample become one vector; ignored for token-level outputs.
    """

    inputs: ClassVar[tuple[str, ...]] = ("tokens",)
    levels: ClassVar[tuple[str, ...]] = ("sample", "token")
    ends_with_head: ClassVar[tuple[str, ...]] = ("tokens",)
    causal: ClassVar[bool] = False

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        token_index: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_index: Tensor | None = None,
    ) -> Tensor | DeferredLogits:
        """Return outputs (B, C) of samples, or (R, L, C) or S + (C,) of tokens, in float32 or autocast's dtype."""
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)
        if sequence_ids is None:
            assert attention_mask is not None
            mask: Tensor | None = attention_mask.bool()[:, None, None, :]
        else:
            mask = self.packed_mask(sequence_ids, token_index, attention_mask, causal=False)
        hidden = self.embed(input_ids, position_ids, token_type_ids)
        for block in self.blocks:
            hidden = block(hidden, mask)
        return self.outputs(self.select(self.norm(hidden), attention_mask, token_index, output_index))
