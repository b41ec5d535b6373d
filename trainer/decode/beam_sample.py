"""Beam sampling: beam search whose candidates are sampled."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.constraints import NonNegativeInt, Positive, PositiveToOne, Seed
from trainer.decode.beam import Beam
from trainer.decode.generation import Continuation, Prompt
from trainer.decode.kv_cache import DecodingSession
from trainer.decode.processors import Processor, sampling_processors
from trainer.decode.search import make_sampler


@dataclass(frozen=True, kw_only=True)
class BeamSample(Beam):
    """Beam search that samples the candidates of each step from all extensions, by their summed scores.

    The same seed gives the tokens of transformers' `generate(do_sample=True, num_beams=...)` after
    `torch.manual_seed(seed)`. One beam is `Sample`.

    Args:
        temperature: As in `Sample`.
        top_k: As in `Sample`; with several beams, at least two tokens per beam stay possible, so that one remains if
            the other is the end-of-text token.
        top_p: As in `Sample`, with the same minimum as `top_k`.
        seed: Seed of the random generator.
    """

    temperature: Positive
    top_k: NonNegativeInt
    top_p: PositiveToOne
    seed: Seed

    def __call__(self, session: DecodingSession, prompt: Prompt) -> list[Continuation]:
        """Return the `num_return` best continuations of a prompt, the best first; the session must be new."""
        return self.search(session, prompt, make_sampler(prompt, self.seed))

    def processors(self, prompt: Prompt) -> list[Processor]:
        keep = 2 if self.num_beams > 1 else 1
        return super().processors(prompt) + sampling_processors(self.temperature, self.top_k, self.top_p, keep)
