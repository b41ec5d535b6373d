"""Beam search: keep the best partial texts at each step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainer.constraints import Count, Finite, Rule, validated
from trainer.decode.generation import Continuation, Prompt
from trainer.decode.kv_cache import DecodingSession
from trainer.decode.search import BeamSearch, Choose, DecodingStrategy, choose_best


@dataclass(frozen=True, kw_only=True)
@validated(
    Rule("num_return <= num_beams", key="num_return", problem="must not be greater than num_beams ({num_beams})")
)
class Beam(DecodingStrategy):
    """Search continuations with several beams; one beam is greedy decoding.

    A continuation's score is the sum of its processed log probabilities, divided by length ** `length_penalty`.

    Args:
        num_beams: Number of partial texts kept at each step.
        length_penalty: Exponent of the length; above 0 favors longer texts, below 0 shorter ones.
        early_stopping: True stops when `num_beams` texts are finished; False when no unfinished text would rank better
            if it ended now; `never` when no unfinished text could ever rank better.
        num_return: Number of continuations, at most `num_beams`.
    """

    num_beams: Count
    length_penalty: Finite
    early_stopping: bool | Literal["never"]
    num_return: Count

    def __call__(self, session: DecodingSession, prompt: Prompt) -> list[Continuation]:
        """Return the `num_return` best continuations of a prompt, the best first; the session must be new."""
        return self.search(session, prompt, choose_best)

    def search(self, session: DecodingSession, prompt: Prompt, choose: Choose) -> list[Continuation]:
        """Return the best continuations among the candidates that `choose` selects at each step."""
        if self.num_beams == 1:
            return self.generate(session, prompt, choose)
        search = BeamSearch(self.stopping_criteria(prompt), self.num_beams, self.length_penalty, self.early_stopping)
        return search.run(session, self.processors(prompt), choose)[: self.num_return]
