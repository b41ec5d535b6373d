"""Score processors: change the next-token scores before a token is chosen, in the order of transformers' `generate`."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import torch
from torch import Tensor

Processor = Callable[[Tensor, Tensor], Tensor]
"""Maps the tokens so far, int64 (B, L), and the next-token scores, float32 (B, V), to new scores (B, V)."""


def sampling_processors(temperature: float, top_k: int, top_p: float, keep: int = 1) -> list[Processor]:
    """Return the processors that shape a sampling distribution; at least `keep` tokens stay possible."""
    processors: list[Processor] = []
    if temperature != 1:
        processors.append(lambda ids, scores: scores / temperature)
    if top_k:
        processors.append(keep_top_k(max(top_k, keep)))
    if top_p < 1:
        processors.append(keep_top_p(top_p, keep))
    return processors


def penalize_repetition(penalty: float) -> Processor:
    """Divide the positive scores of tokens that are already in the text by `penalty`, and multiply negative ones.

    Source: Keskar et al. 2019, https://arxiv.org/abs/1909.05858.
    """

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        seen = scores.gather(1, ids)
        return scores.scatter(1, ids, torch.where(seen < 0, seen * penalty, seen / penalty))

    return process


def ban_repeated_ngrams(size: int) -> Processor:
    """Ban tokens that would repeat a sequence of `size` tokens of the text, including the prompt."""

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        length = ids.shape[1]
        if length < size:
            return scores
        ngrams = ids.unfold(1, size, 1)
        beginning = ids[:, None, length - size + 1 :]
        repeats = (ngrams[..., :-1] == beginning).all(dim=-1)
        # A sum, because with plain writes any one of several writes of a token may win; no sync with the device.
        counts = torch.zeros_like(scores).scatter_add(1, ngrams[..., -1], repeats.to(scores.dtype))
        return scores.masked_fill(counts > 0, -inf)

    return process


def ban_token_before(token_id: int, length: int) -> Processor:
    """Ban a token until the text has `length` tokens."""

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        if ids.shape[1] >= length:
            return scores
        scores = scores.clone()
        scores[:, token_id] = -inf
        return scores

    return process


def keep_top_k(k: int) -> Processor:
    """Keep only the `k` tokens with the highest scores, and ties of the last of them."""

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        best, _ = scores.topk(min(k, scores.shape[1]))
        return scores.masked_fill(scores < best[:, -1:], -inf)

    return process


def keep_top_p(p: float, keep: int = 1) -> Processor:
    """Keep only the smallest set of most likely tokens with a total probability of at least `p`; at least `keep`.

    Source: Holtzman et al. 2019, "The curious case of neural text degeneration", https://arxiv.org/abs/1904.09751.
    """

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        # In ascending order, so that the decisive sum is a small one.
        ascending, order = scores.sort()
        dropped = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - p
        dropped[:, -keep:] = False
        return scores.masked_fill(dropped.scatter(1, order, dropped), -inf)

    return process
