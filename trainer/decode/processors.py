"""Changes of scores before a token is chosen by them; they compose in the order of transformers' `generate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

import torch
from torch import Tensor

Processor = Callable[[Tensor, Tensor], Tensor]
"""The tokens so far, int64 (B, L), and the scores of the next one, float32 (B, V), to new scores (B, V)."""


def processed(processors: Sequence[Processor], ids: Tensor, scores: Tensor) -> Tensor:
    """The scores after each of `processors`, in order."""
    for processor in processors:
        scores = processor(ids, scores)
    return scores


def narrowing(temperature: float, top_k: int, top_p: float, keep: int = 1) -> list[Processor]:
    """What shapes the distribution that is drawn from; at least `keep` tokens stay possible."""
    found: list[Processor] = []
    if temperature != 1:
        found.append(lambda ids, scores: scores / temperature)
    if top_k:
        found.append(keep_top_k(max(top_k, keep)))
    if top_p < 1:
        found.append(keep_top_p(top_p, keep))
    return found


def penalize_repetition(penalty: float) -> Processor:
    """Scores of tokens that stand in the text already are divided by `penalty`, negative ones multiplied.

    Source: Keskar et al. 2019, https://arxiv.org/abs/1909.05858.
    """

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        seen = scores.gather(1, ids)
        return scores.scatter(1, ids, torch.where(seen < 0, seen * penalty, seen / penalty))

    return process


def ban_repeated_ngrams(size: int) -> Processor:
    """No sequence of `size` tokens occurs twice, the prompt included."""

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        length = ids.shape[1]
        if length < size:
            return scores
        ngrams = ids.unfold(1, size, 1)
        beginning = ids[:, None, length - size + 1 :]
        again = (ngrams[..., :-1] == beginning).all(dim=-1)
        # Sums, as of several writes of a token any one could stay; on the device, without a look at what is found.
        times = torch.zeros_like(scores).scatter_add(1, ngrams[..., -1], again.to(scores.dtype))
        return scores.masked_fill(times > 0, -inf)

    return process


def ban_token_before(token_id: int, length: int) -> Processor:
    """The token is impossible until the text has `length` tokens."""

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        if ids.shape[1] >= length:
            return scores
        scores = scores.clone()
        scores[:, token_id] = -inf
        return scores

    return process


def keep_top_k(k: int) -> Processor:
    """Only the `k` best tokens stay possible, and those that are as good as the last of them."""

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        best, _ = scores.topk(min(k, scores.shape[1]))
        return scores.masked_fill(scores < best[:, -1:], -inf)

    return process


def keep_top_p(p: float, keep: int = 1) -> Processor:
    """Only the fewest best tokens stay possible whose probabilities together reach `p`, and at least `keep`.

    Source: Holtzman et al. 2019, "The curious case of neural text degeneration", https://arxiv.org/abs/1904.09751.
    """

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        # From the worst token on, so that the sum that decides is a small one.
        rising, order = scores.sort()
        left_out = rising.softmax(dim=-1).cumsum(dim=-1) <= 1 - p
        left_out[:, -keep:] = False
        return scores.masked_fill(left_out.scatter(1, order, left_out), -inf)

    return process
