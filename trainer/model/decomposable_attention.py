"""Compare two texts token by token with decomposable attention."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.constraints import BelowOne, Count, validated
from trainer.model.layers import take_tokens, zero_padding


class DecomposableAttention(nn.Module):
    """A classifier of text pairs that compares their tokens; equal tokens match even before training.

    Each token attends to the tokens of the other text and to a learned vector that means "no token", with the softmax
    of `align(e_i) . align(e_j) / sqrt(D)`. `align` is initialized as the identity, so equal tokens attend to each
    other. A layer compares a token's vector e with the vector a that it attends to, on [e, a, |e - a|, e * a]; the
    concatenated mean and maximum over the tokens of each text are classified. There are no positions: a text is a set
    of tokens. A token's type says which text it belongs to; with a single type, a text is compared with itself.

    Inputs are padded or packed, with the same output; see `TextEncoder`.

    Source: Parikh et al. 2016, https://arxiv.org/abs/1606.01933; the difference, the product and the maximum after Chen
    et al. 2017, https://arxiv.org/abs/1609.06038.

    Args:
        vocab_size: Number of token ids.
        num_outputs: Number of outputs, C; None returns the `hidden` features before the head.
        num_token_types: Number of token types, 1 or 2.
        dim: Width of the token vectors, D.
        hidden: Width of the layers that compare and classify.
        dropout: Dropout probability on token vectors and between layers.
    """

    inputs: ClassVar[tuple[str, ...]] = ("tokens",)
    levels: ClassVar[tuple[str, ...]] = ("sample",)
    ends_with_head: ClassVar[tuple[str, ...]] = ("tokens",)

    @validated()
    def __init__(
        self,
        vocab_size: int,
        num_outputs: int | None,
        num_token_types: int = 1,
        *,
        dim: Count,
        hidden: Count,
        dropout: BelowOne,
    ) -> None:
        super().__init__()
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
        """Return outputs (B, C)."""
        tokens = self.token_embedding(input_ids)
        if attention_mask is None:
            assert sequence_ids is not None
            mask = sequence_ids[:, :, None] == sequence_ids[:, None, :]
        else:
            mask = attention_mask.bool()[:, None, :].expand(-1, tokens.shape[1], -1)
        if token_type_ids is not None:
            mask = mask & (token_type_ids[:, :, None] != token_type_ids[:, None, :])
        aligned = self._align(tokens, mask)
        tokens, aligned = self.dropout(tokens), self.dropout(aligned)
        compared = self.compare(torch.cat([tokens, aligned, (tokens - aligned).abs(), tokens * aligned], dim=-1))
        output: Tensor = self.head(self.aggregate(self._pooled(compared, attention_mask, token_index, token_type_ids)))
        return output

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the embeddings of the tokens."""
        return self.token_embedding

    def _align(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return for each token the weighted mean of the tokens (R, L, D) that the boolean `mask` (R, L, L) allows."""
        none = self.none.expand(tokens.shape[0], 1, -1)
        values = torch.cat([none, tokens], dim=1)
        # In a pair with an empty text, tokens can attend only to the vector for no token.
        allowed = F.pad(mask, (1, 0), value=True)
        # One head, because the ONNX exporter supports only four dimensions.
        query, key, value, allowed = (
            tensor.unsqueeze(1) for tensor in (self.align(tokens), self.align(values), values, allowed)
        )
        return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed).squeeze(1)

    def _pooled(
        self, compared: Tensor, attention_mask: Tensor | None, token_index: Tensor | None, types: Tensor | None
    ) -> Tensor:
        """Return the mean and the maximum of the comparisons (R, L, H) for each text: (B, texts * 2 * H)."""
        if token_index is None:
            assert attention_mask is not None
            present = attention_mask.bool()
        else:
            present = token_index >= 0
            compared = take_tokens(compared, token_index)
            types = None if types is None else take_tokens(types.unsqueeze(-1), token_index).squeeze(-1)
        parts = []
        for text in range(self.num_texts):
            keep = (present if types is None else present & (types == text)).unsqueeze(-1)
            # Comparisons are at least 0, so masked ones change neither the sum nor the maximum, also of an empty text.
            kept = zero_padding(compared, keep)
            dtype = torch.promote_types(kept.dtype, torch.float32)
            count = keep.sum(dim=1, dtype=dtype).clamp(min=1)
            parts += [(kept.sum(dim=1, dtype=dtype) / count).to(kept.dtype), kept.amax(dim=1)]
        return torch.cat(parts, dim=-1)


def _layers(width: int, hidden: int, dropout: float) -> nn.Sequential:
    """Return two linear layers with outputs of at least 0."""
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, hidden), nn.ReLU())
