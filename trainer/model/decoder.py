"""A decoder-only transformer: a language model that is trained from scratch."""

from math import sqrt
from typing import ClassVar, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.errors import format_error, raise_if_any
from trainer.model.attention import Block, stack_faults
from trainer.model.pooling import pool_samples, take_tokens

Cache = tuple[Tensor, ...]
"""Keys and values of the P positions seen, each (B, heads, P, D / heads): the first block's keys and its values, the
second block's keys, and so on. All have the samples first: `tuple(part[order] for part in cache)` reorders them.
"""

_STD: Final = 0.02


class Decoder(nn.Module):
    """Token ids to outputs, of which none sees a later token: GPT-2.

    Each position attends to itself and to those before it. At token level the outputs are, for a language model, the
    logits of the next token: hidden states times the token embeddings (tied embeddings, without a bias), or a linear
    head. At sample level the tokens are pooled and a linear head makes the outputs.

    It takes a micro-batch in three layouts, and gives a sample the same output in each:

    * plain: `input_ids` (B, T), or padded after the tokens, with `attention_mask` (B, T), one sample a row;
    * packed: `input_ids` (R, L) with several samples a row, `position_ids` (R, L) restarting at each sample,
      `sequence_ids` (R, L) a number for each sample of a row, and, for outputs of samples,
      `token_index` (B, T), where each sample's tokens lie in the flattened rows (-1 where a sample is shorter than T);
    * blocks of a running text: as packed, with `sequence_ids` of the documents; attention stays inside a document.

    Outputs of tokens are those of all places of the rows, or of the places that `output_index` names: flattened
    positions of any shape S, -1 where no output is wanted (there stands that of the first place).

    Weights begin as in GPT-2: normal with a standard deviation of 0.02, divided by sqrt(2 * depth) in the two layers of
    each block whose outputs are added up; biases are 0. Attention weights themselves have no dropout.

    Source: Radford et al. 2019, "Language models are unsupervised multitask learners"; tied embeddings after Press and
    Wolf 2017, https://arxiv.org/abs/1608.05859.

    Args:
        vocab_size: Token ids are below it, V.
        num_outputs: Columns of the output, C; None: the D features before the head are the output.
        max_length: Positions it knows; no sample is longer.
        output_level: Whether there is an output for each sample or for each token.
        num_token_types: Kinds of tokens; where there are several, each has an embedding that is added to its tokens.
        dim: Width of the hidden states, D.
        depth: Number of blocks.
        heads: Attention heads; divides `dim`.
        hidden: Width of the feed-forward layers.
        dropout: Probability, on embeddings and on what each block adds.
        tie_embeddings: Whether the token embeddings are the head of the tokens' outputs; then C = V.
        pooling: How the tokens of a sample become one vector; of no effect on outputs of tokens.

    Attributes:
        cached: Whether it can read token by token, with `empty_cache` and `step`.

    Raises:
        ConfigError: A value is out of range, or embeddings cannot be tied as the outputs are not the vocabulary.
    """

    inputs: ClassVar[tuple[str, ...]] = ("tokens",)
    levels: ClassVar[tuple[str, ...]] = ("sample", "token")
    causal: ClassVar[bool] = True

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
        tie_embeddings: bool,
        pooling: Literal["cls", "mean", "max", "last"],
    ) -> None:
        super().__init__()
        self.tied = tie_embeddings and output_level == "token" and num_outputs is not None
        faults = stack_faults(dim=dim, depth=depth, heads=heads, hidden=hidden, dropout=dropout)
        if self.tied and num_outputs != vocab_size:
            problem = f"needs an output for each of the {vocab_size} tokens known, and there are {num_outputs} outputs"
            faults.append(format_error("tie_embeddings", problem, "Set it to false", value=True))
        raise_if_any(*faults)
        self.output_level = output_level
        self.cached = output_level == "token" and num_token_types == 1
        self.pooling = pooling
        self.token_embedding = nn.Embedding(vocab_size, dim)
        self.position_embedding = nn.Embedding(max_length, dim)
        self.token_type_embedding = nn.Embedding(num_token_types, dim) if num_token_types > 1 else None
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(dim, heads, hidden, dropout, gelu="tanh") for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        # Tied, the weight has one name, and so counts once wherever parameters are named, saved and averaged.
        self.head = nn.Identity() if self.tied or num_outputs is None else nn.Linear(dim, num_outputs)
        self._initialize()

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
        columns = torch.arange(input_ids.shape[1], device=input_ids.device)
        mask = None
        if sequence_ids is not None:
            together = sequence_ids[:, None, :, None] == sequence_ids[:, None, None, :]
            mask = together & (columns[:, None] >= columns)
        hidden = self._embed(input_ids, columns if position_ids is None else position_ids, token_type_ids)
        # Without a mask for padding: it comes after the tokens, so none of them sees it.
        for block in self.blocks:
            hidden = block(hidden, mask, causal=mask is None)
        hidden = self.norm(hidden)
        if self.output_level == "sample":
            hidden = pool_samples(hidden, attention_mask, token_index, self.pooling)
        elif output_index is not None:
            hidden = take_tokens(hidden, output_index)
        return self._outputs(hidden)

    def empty_cache(self, batch_size: int) -> Cache:
        """What `step` begins with: the cache of `batch_size` sequences of which nothing is seen."""
        weight = self.token_embedding.weight
        block = self.blocks[0]
        assert isinstance(block, Block)
        shape = (batch_size, block.heads, 0, weight.shape[1] // block.heads)
        return tuple(weight.new_empty(shape) for _ in range(2 * len(self.blocks)))

    def step(self, input_ids: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """The next T tokens of B sequences of equal length: a prompt, or the token that was chosen last.

        Args:
            input_ids: The tokens (B, T); with the P seen before at most `max_length`.
            cache: From `empty_cache`, or from the step before.

        Returns:
            The outputs of the last token (B, C), as `forward` gives them at token level, and the cache of P + T tokens.
        """
        assert self.output_level == "token"
        assert len(cache) == 2 * len(self.blocks)
        total = cache[0].shape[2] + input_ids.shape[1]
        seen = torch.arange(total, device=input_ids.device)
        positions = torch.arange(cache[0].shape[2], total, device=input_ids.device)
        hidden = self._embed(input_ids, positions, None)
        mask = positions[:, None] >= seen
        extended: list[Tensor] = []
        for block, keys, values in zip(self.blocks, cache[::2], cache[1::2], strict=True):
            assert isinstance(block, Block)
            hidden, keys, values = block.extend(hidden, mask, keys, values)
            extended += [keys, values]
        return self._outputs(self.norm(hidden[:, -1])), tuple(extended)

    def _embed(self, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        hidden = self.token_embedding(input_ids) + self.position_embedding(position_ids)
        if self.token_type_embedding is not None:
            assert token_type_ids is not None
            hidden = hidden + self.token_type_embedding(token_type_ids)
        embedded: Tensor = self.dropout(hidden)
        return embedded

    def _outputs(self, hidden: Tensor) -> Tensor:
        output: Tensor = F.linear(hidden, self.token_embedding.weight) if self.tied else self.head(hidden)
        return output

    def _initialize(self) -> None:
        for name, part in self.named_modules():
            if isinstance(part, nn.Linear | nn.Embedding):
                added = name.endswith((".attention_output", ".feed_forward.2"))
                nn.init.normal_(part.weight, std=_STD / sqrt(2 * len(self.blocks)) if added else _STD)
            if isinstance(part, nn.Linear):
                nn.init.zeros_(part.bias)
