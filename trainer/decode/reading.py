"""A language model that reads tokens and says what may come next; what it has read it keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Cache = tuple[Tensor, ...]
"""Keys and values of P positions, the samples first: each layer's keys (B, heads, P, D / heads), then its values."""


class Reader(Protocol):
    """Sequences of equal length that are read on and on. It begins with one, of which nothing is read."""

    def read(self, input_ids: Tensor) -> Tensor:
        """Reads the next T tokens (B, T) of each sequence; scores of the token after them, float32 (B, V)."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Goes on with the sequences of these numbers, int64 (K,), in this order; one may be taken several times."""
        ...


OpenReader = Callable[[], Reader]


def open_reader(model: nn.Module) -> Reader:
    """A reader of a causal model with outputs of tokens: with its cache where it has one."""
    return CachedReader(model) if getattr(model, "cached", False) else WholeReader(model)


def cached_step(model: Any, input_ids: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
    """The model's step; its output becomes scores if the loss has a head (see `trainer.targets.with_loss_head`)."""
    output, cache = model.step(input_ids, cache)
    scoring: Any = getattr(model, "scoring", None)
    return (output if scoring is None else scoring.scores(output)), cache


class CachedReader:
    """Reads each token once: a step costs the new tokens alone.

    The cache grows by a new tensor at each step. Writing into one of full length instead was measured: copying 256
    positions is 3 % of a step (4 layers of 128), and a graph can only be made of what is given and returned.

    Args:
        model: Has `empty_cache` and `step`.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._cache: Cache = self._model.empty_cache(1)

    def read(self, input_ids: Tensor) -> Tensor:
        scores, self._cache = cached_step(self._model, input_ids, self._cache)
        return scores.float()

    def keep(self, rows: Tensor) -> None:
        self._cache = tuple(part.index_select(0, rows) for part in self._cache)


class WholeReader:
    """Reads everything again at each step: for models without a cache, and what a cache is compared with.

    Args:
        model: Takes `input_ids` and `attention_mask`, gives outputs (B, T, V).
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._seen: Tensor | None = None

    def read(self, input_ids: Tensor) -> Tensor:
        self._seen = input_ids if self._seen is None else torch.cat([self._seen, input_ids], dim=1)
        output: Tensor = self._model(input_ids=self._seen, attention_mask=torch.ones_like(self._seen))
        return output[:, -1].float()

    def keep(self, rows: Tensor) -> None:
        assert self._seen is not None, "nothing is read"
        self._seen = self._seen[rows]
