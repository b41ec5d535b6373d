"""Greedy decoding: choose the best token at each step."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.decode.generation import Continuation, Prompt
from trainer.decode.kv_cache import DecodingSession
from trainer.decode.search import DecodingStrategy, choose_best


@dataclass(frozen=True, kw_only=True)
class Greedy(DecodingStrategy):
    """Choose the token with the highest processed score at each step."""

    def __call__(self, session: DecodingSession, prompt: Prompt) -> list[Continuation]:
        """Return the only continuation of a prompt; the session must be new."""
        return self.generate(session, prompt, choose_best)
