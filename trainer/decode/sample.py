"""Sampling: each token is drawn from the model's distribution."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.decode.decoding import Decoding, drawing
from trainer.decode.processors import Processor, narrowing
from trainer.decode.prompt import Continuation, Prompt
from trainer.decode.reading import Reader


@dataclass(frozen=True, kw_only=True)
class Sample(Decoding):
    """SampleRng each token with the probability that the processed scores give it.

    The same seed gives the tokens of transformers' `generate(do_sample=True)` after `torch.manual_seed(seed)`.

    Args:
        temperature: Divides the scores: below 1 the likely becomes likelier.
        top_k: Only so many best tokens are possible; 0: all are.
        top_p: Only the best tokens are possible that together are so probable; 1: all are.
        num_return: Continuations.
        seed: Of the draws.
    """

    temperature: float
    top_k: int
    top_p: float
    num_return: int
    seed: int

    def __call__(self, reader: Reader, prompt: Prompt) -> list[Continuation]:
        """`num_return` continuations of a prompt; of the reader nothing is read."""
        return self.extend(reader, prompt, drawing(prompt, self.seed), self.num_return)

    def processors(self, prompt: Prompt) -> list[Processor]:
        return super().processors(prompt) + narrowing(self.temperature, self.top_k, self.top_p)
