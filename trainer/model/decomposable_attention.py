"""Two texts compared word by word: each token meets what is most like it in the other text."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.errors import raise_if_any
from trainer.model.checks import dropout_faults, size_faults
from trainer.model.pooling import take_tokens


class DecomposableAttention(nn.Module):
    """Pairs of texts to outputs by comparing their tokens; what is equal counts before anything is learnt.

    Each token attends to the tokens of the other text and to a vector that stands for none of them: softmax of
    `align(e_i) . align(e_j) / sqrt(D)`, where `align` begins as the identity, so that equal tokens find each other at
    once. A layer compares a token's vector e with the vector a that it found, on [e, a, |e - a|, e * a]; the mean and
    the maximum over the tokens of either text, side by side, are classified. There are no positions: a text is the
    set of its tokens. Which text a token belongs to is told by its type; where there is one type alone, a text is
    compared with itself.

    Inputs come in either layout, with the same output (see `TextEncoder`).

    Source: Parikh et al. 2016, https://arxiv.org/abs/1606.01933; differences and products of what is aligned, and the
    maximum beside the mean, after Chen et al. 2017, https://arxiv.org/abs/1609.06038.

    Args:
        vocab_size: Token ids are below it.
        num_outputs: Columns of the output, C; None: the `hidden` features before the head are the output.
        num_token_types: Kinds of tokens, 1 or 2.
        dim: Width of the token vectors, D.
        hidden: Width of the layers that compare and that classify.
        dropout: Probability, on token vectors and between layers.

    Raises:
        ConfigError: A value is out of range.
    """

    inputs: ClassVar[tuple[str, ...]] = ("tokens",)
    levels: ClassVar[tuple[str, ...]] = ("sample",)

    def __init__(
        self,
        vocab_size: int,
        num_outputs: int | None,
        num_token_types: int = 1,
        *,
        dim: int,
        hidden: int,
        dropout: float,
    ) -> None:
        super().__init__()
        raise_if_any(*size_faults(dim=dim, hidden=hidden), *dropout_faults(dropout))
        self.num_texts = num_token_types
        self.token_embedding = nn.Embedding(vocab_size, dim)
        self.none = nn.Parameter(torch.zeros(dim))
        self.align = nn.Linear(dim, dim, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.compare = _layers(4 * dim, hidden, dropout)
        self.aggregate = _layers(2 * num_token_types * hidden, hidden, dropout)
        self.head = nn.Identity() if num_outputs is None else nn.Linear(hidden, num_outputs)
        nn.init.eye_(self.align.weight)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        token_index: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Outputs (B, C)."""
        tokens = self.token_embedding(input_ids)
        if attention_mask is None:
            assert sequence_ids is not None
            mask = sequence_ids[:, :, None] == sequence_ids[:, None, :]
        else:
            mask = attention_mask.bool()[:, None, :].expand(-1, tokens.shape[1], -1)
        if token_type_ids is not None:
            mask = mask & (token_type_ids[:, :, None] != token_type_ids[:, None, :])
        found = self._found(tokens, mask)
        tokens, found = self.dropout(tokens), self.dropout(found)
        compared = self.compare(torch.cat([tokens, found, (tokens - found).abs(), tokens * found], dim=-1))
        output: Tensor = self.head(self.aggregate(self._pooled(compared, attention_mask, token_index, token_type_ids)))
        return output

    def _found(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """The mean of the tokens (R, L, D) that each attends to, where the boolean `mask` (R, L, L) lets it."""
        none = self.none.expand(tokens.shape[0], 1, -1)
        values = torch.cat([none, tokens], dim=1)
        # Whoever may attend to no token, in a pair with an empty text, attends to none of them.
        allowed = F.pad(mask, (1, 0), value=True)
        # As one head: the exporter to ONNX takes four dimensions alone.
        query, key, value, allowed = (
            each.unsqueeze(1) for each in (self.align(tokens), self.align(values), values, allowed)
        )
        return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed).squeeze(1)

    def _pooled(
        self, compared: Tensor, attention_mask: Tensor | None, token_index: Tensor | None, types: Tensor | None
    ) -> Tensor:
        """The mean and the maximum of what was compared (R, L, H), text by text: (B, texts * 2 * H)."""
        if token_index is None:
            assert attention_mask is not None
            there = attention_mask.bool()
        else:
            there = token_index >= 0
            compared = take_tokens(compared, token_index)
            types = None if types is None else take_tokens(types.unsqueeze(-1), token_index).squeeze(-1)
        parts = []
        for text in range(self.num_texts):
            keep = (there if types is None else there & (types == text)).unsqueeze(-1)
            # Nothing compared is below 0: what is left out is 0 to the sum and to the maximum, also of an empty text.
            kept = compared * keep
            dtype = torch.promote_types(kept.dtype, torch.float32)
            count = keep.sum(dim=1, dtype=dtype).clamp(min=1)
            parts += [(kept.sum(dim=1, dtype=dtype) / count).to(kept.dtype), kept.amax(dim=1)]
        return torch.cat(parts, dim=-1)


def _layers(width: int, hidden: int, dropout: float) -> nn.Sequential:
    """Two layers, of which the outputs are not below 0."""
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, hidden), nn.ReLU())
