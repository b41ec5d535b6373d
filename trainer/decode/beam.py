"""Beam search: the likeliest texts among those that keep the best beginnings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainer.decode.decoding import Choose, Decoding
from trainer.decode.greedy import likeliest
from trainer.decode.prompt import Continuation, Prompt
from trainer.decode.reading import Reader
from trainer.decode.search import Search


@dataclass(frozen=True, kw_only=True)
class Beam(Decoding):
    """Finds continuations by beam search; with one beam the greedy one.

    A continuation's score is the sum of its tokens' processed log probabilities, divided by length ** `length_penalty`.

    Args:
        num_beams: Beginnings kept at each step.
        length_penalty: Above 0 longer texts gain, below 0 shorter ones.
        early_stopping: True: ends when `num_beams` texts have ended; False: when none of those that go on would be
            better than these if it ended now; `never`: when none could become better.
        num_return: Continuations, at most `num_beams`.
    """

    num_beams: int
    length_penalty: float
    early_stopping: bool | Literal["never"]
    num_return: int

    def __call__(self, reader: Reader, prompt: Prompt) -> list[Continuation]:
        """The `num_return` best continuations of a prompt, the best first; of the reader nothing is read."""
        return self.find(reader, prompt, likeliest)

    def find(self, reader: Reader, prompt: Prompt, choose: Choose) -> list[Continuation]:
        """The same, with the candidates of each step that `choose` takes."""
        if self.num_beams == 1:
            return self.extend(reader, prompt, choose)
        search = Search(self.ending(prompt), self.num_beams, self.length_penalty, self.early_stopping)
        return search.run(reader, self.processors(prompt), choose)[: self.num_return]
