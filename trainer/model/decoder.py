"""A decoder-only transformer: a language model that is trained from scratch."""

from math import sqrt
from typing import ClassVar, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.constraints import BelowOne, Count, Rule, validated
from trainer.deferred_logits import DeferredLogits
from trainer.model.layers import HEADS_DIVIDE_DIM, TokenTransformer, TransformerBlock
from trainer.protocols import Cache

_STD: Final = 0.02


class Decoder(TokenTransformer):
    """A GPT-2 that maps token ids to outputs; no output depends on later tokens.

    At token level the outputs are, for a language model, the logits of the next token: hidden states times the token
    embeddings (tied, without a bias), or a linear head. At sample level the tokens are pooled before the linear head.

    A micro-batch has one of three layouts, and a sample has the same output in each of them:

    * plain: `input_ids` (B, T), one sample per row, and `attention_mask` (B, T) if there is padding after the tokens;
    * packed: `input_ids` (R, L) with several samples per row, `position_ids` (R, L) that restart at each sample,
      `sequence_ids` (R, L) with a number for each sample of a row, and `token_index` (B, T), the positions of each
      sample's tokens in the flattened rows (-1 after the end of a sample). Without `token_index` there are only
      token-level outputs, and no faster attention on CUDA;
    * blocks of running text: packed, with the documents as `sequence_ids`; attention stays inside a document.

    Token-level outputs are returned for all positions of the rows, or for the flattened positions in `output_index` of
    any shape S; an index of -1 means that no output is needed (it returns the output of the first position).

    Weights are initialized as in GPT-2: normal with a standard deviation of 0.02, divided by sqrt(2 * depth) in the two
    layers of each block that feed the residual connections; biases are 0. Attention weights have no dropout.

    Source: Radford et al. 2019, "Language models are unsupervised multitask learners"; tied embeddings after Press and
    Wolf 2017, https://arxiv.org/abs/1608.05859.

    Args:
        vocab_size: Number of token ids, V.
        num_outputs: Number of outputs, C; None returns the D features before the head.
        max_length: Number of positions; no sample is longer.
        output_level: `sample` for one output per sample, `token` for one output per token.
        num_token_types: Number of token types; with several, each token's type has an embedding too.
        dim: Width of the hidden states, D.
        depth: Number of blocks.
        heads: Number of attention heads; divides `dim`.
        hidden: Width of the feed-forward layers.
        dropout: Dropout probability on embeddings and in blocks.
        tie_embeddings: Use the token embeddings as the output layer of a language model.
        pooling: How the tokens of a sample become one vector; ignored for token-level outputs.

    Attributes:
        cached: True if the model can decode token by token with `empty_cache` and `step`.

    Raises:
        ConfigError: Embeddings cannot be tied because the outputs are not the vocabulary.
    """

    inputs: ClassVar[tuple[str, ...]] = ("tokens",)
    levels: ClassVar[tuple[str, ...]] = ("sample", "token")
    ends_with_head: ClassVar[tuple[str, ...]] = ("tokens",)
    causal: ClassVar[bool] = True
    gelu = "tanh"

    @validated(
        HEADS_DIVIDE_DIM,
        Rule(
            "not tie_embeddings or output_level == 'sample' or num_outputs is None or num_outputs == vocab_size",
            key="tie_embeddings",
            problem="needs one output for each of the {vocab_size} tokens, but there are {num_outputs} outputs",
            remedy="Set it to false",
        ),
    )
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
        tie_embeddings: bool,
        pooling: Literal["cls", "mean", "max", "last"],
    ) -> None:
        tied = tie_embeddings and output_level == "token" and num_outputs is not None
        super().__init__(
            vocab_size,
            # Tied, the weight has one name, so it is counted, saved and averaged once.
            None if tied else num_outputs,
            max_length,
            output_level,
            num_token_types,
            dim=dim,
            depth=depth,
            heads=heads,
            hidden=hidden,
            dropout=dropout,
            pooling=pooling,
        )
        self.tied = tied
        self.cached = output_level == "token" and num_token_types == 1

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
        mask = (
            None if sequence_ids is None else self.packed_mask(sequence_ids, token_index, attention_mask, causal=True)
        )
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden = self.embed(input_ids, position_ids, token_type_ids)
        # Padding needs no mask: it comes after the tokens, so no token sees it.
        for block in self.blocks:
            hidden = block(hidden, mask, causal=True)
        hidden = self.norm(hidden)
        return self.outputs(self.select(hidden, attention_mask, token_index, output_index))

    def empty_cache(self, batch_size: int) -> Cache:
        """Return the cache of `batch_size` sequences without tokens, the input of the first `step`."""
        weight = self.token_embedding.weight
        block = self.blocks[0]
        assert isinstance(block, TransformerBlock)
        shape = (batch_size, block.heads, 0, weight.shape[1] // block.heads)
        return tuple(weight.new_empty(shape) for _ in range(2 * len(self.blocks)))

    def step(self, input_ids: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """Run the next T tokens of B sequences of equal length: a prompt, or the token chosen last.

        Args:
            input_ids: The tokens (B, T); together with the P tokens in the cache at most `max_length`.
            cache: The result of `empty_cache` or of the previous step.

        Returns:
            The outputs of the last token (B, C), as `forward` returns them at token level, and the cache of P + T
            tokens.
        """
        assert self.output_level == "token"
        assert len(cache) == 2 * len(self.blocks)
        total = cache[0].shape[2] + input_ids.shape[1]
        seen = torch.arange(total, device=input_ids.device)
        positions = torch.arange(cache[0].shape[2], total, device=input_ids.device)
        hidden = self.embed(input_ids, positions, None)
        mask = positions[:, None] >= seen
        extended: list[Tensor] = []
        for block, keys, values in zip(self.blocks, cache[::2], cache[1::2], strict=True):
            assert isinstance(block, TransformerBlock)
            hidden, keys, values = block.extend(hidden, mask, keys, values)
            extended += [keys, values]
        outputs = self.outputs(self.norm(hidden[:, -1]))
        assert isinstance(outputs, Tensor)
        return outputs, tuple(extended)

    def output_layer(self) -> tuple[Tensor, Tensor | None] | None:
        return (self.token_embedding.weight, None) if self.tied else super().output_layer()

    def outputs(self, features: Tensor) -> Tensor | DeferredLogits:
        if self.tied and not self.defer_logits:
            return F.linear(features, self.token_embedding.weight)
        return super().outputs(features)

    def _initialize(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                residual = name.endswith((".attention_output", ".feed_forward.2"))
                nn.init.normal_(module.weight, std=_STD / sqrt(2 * len(self.blocks)) if residual else _STD)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
