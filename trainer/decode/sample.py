"""Sampling: draw each token from the model's distribution."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.constraints import Count, NonNegativeInt, Positive, PositiveToOne, Seed
from trainer.decode.generation import Continuation, Prompt
from trainer.decode.kv_cache import DecodingSession
from trainer.decode.processors import Processor, sampling_processors
from trainer.decode.search import DecodingStrategy, make_sampler


@dataclass(frozen=True, kw_only=True)
class Sample(DecodingStrategy):
    """Draw each token with the probability of its processed score.

    The same seed gives the tokens of transformers' `generate(do_sample=True)` after `torch.manual_seed(seed)`.

    Args:
        temperature: Divides the scores; below 1 favors likely tokens.
        top_k: Number of most likely tokens to draw from; 0 for all.
        top_p: Total probability of the most likely tokens to draw from; 1 for all.
        num_return: Number of continuations.
        seed: Seed of the random generator.
    """

    temperature: Positive
    top_k: NonNegativeInt
    top_p: PositiveToOne
    num_return: Count
    seed: Seed

    def __call__(self, session: DecodingSession, prompt: Prompt) -> list[Continuation]:
        """Return `num_return` continuations of a prompt; the session must be new."""
        return self.generate(session, prompt, make_sampler(prompt, self.seed), self.num_return)

    def processors(self, prompt: Prompt) -> list[Processor]:
        return super().processors(prompt) + sampling_processors(self.temperature, self.top_k, self.top_p)
