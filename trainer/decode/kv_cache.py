"""Decoding sessions: feed tokens to a language model step by step, with or without a key-value cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from trainer.protocols import Cache, HasLossHead, TokenByTokenModel


class DecodingSession(Protocol):
    """Sequences of equal length that grow step by step. A new session has one sequence without tokens."""

    def feed(self, input_ids: Tensor) -> Tensor:
        """Append T tokens (B, T) to each sequence and return the scores of the next token, float32 (B, V)."""
        ...

    def reorder(self, rows: Tensor) -> None:
        """Continue with the sequences `rows`, int64 (K,), in this order; a row may occur several times."""
        ...


OpenSession = Callable[[], DecodingSession]


def open_session(model: nn.Module) -> DecodingSession:
    """Return a session of a causal model with token-level outputs; it uses the model's cache if there is one."""
    return CachedSession(model) if has_cache(model) else UncachedSession(model)


def has_cache(model: object) -> bool:
    """Return whether the model can decode token by token with a key-value cache."""
    return isinstance(model, TokenByTokenModel) and model.cached


def cached_step(model: nn.Module, input_ids: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
    """Run the model's step and return scores, which the loss computes if it has a head of its own.

    See `trainer.targets.with_loss_head` for losses with a head.
    """
    assert isinstance(model, TokenByTokenModel)
    output, cache = model.step(input_ids, cache)
    scoring = dict(model.named_children()).get("scoring")
    return (scoring.scores(output) if isinstance(scoring, HasLossHead) else output), cache


class CachedSession:
    """A session that feeds each token to the model once, so a step costs only the new tokens.

    The cache grows by concatenation at each step. Writing into a preallocated cache was measured and does not pay off:
    copying 256 positions is 3% of a step (4 layers of width 128), and an exported graph cannot update its inputs.

    Args:
        model: A `TokenByTokenModel`.
    """

    def __init__(self, model: nn.Module) -> None:
        assert isinstance(model, TokenByTokenModel)
        self._model = model
        self._cache = model.empty_cache(1)

    def feed(self, input_ids: Tensor) -> Tensor:
        scores, self._cache = cached_step(self._model, input_ids, self._cache)
        return scores.float()

    def reorder(self, rows: Tensor) -> None:
        self._cache = tuple(part.index_select(0, rows) for part in self._cache)


class UncachedSession:
    """A session that feeds the whole sequence at each step: for models without a cache, and as their reference.

    Args:
        model: Takes `input_ids` and `attention_mask` and returns outputs (B, T, V).
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._ids: Tensor | None = None

    def feed(self, input_ids: Tensor) -> Tensor:
        self._ids = input_ids if self._ids is None else torch.cat([self._ids, input_ids], dim=1)
        output: Tensor = self._model(input_ids=self._ids, attention_mask=torch.ones_like(self._ids))
        return output[:, -1].float()

    def reorder(self, rows: Tensor) -> None:
        assert self._ids is not None, "reorder needs a sequence"
        self._ids = self._ids[rows]
