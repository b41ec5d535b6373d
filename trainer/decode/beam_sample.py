"""Beam sampling: beam search whose candidates are drawn."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.decode.beam import Beam
from trainer.decode.decoding import drawing
from trainer.decode.processors import Processor, narrowing
from trainer.decode.prompt import Continuation, Prompt
from trainer.decode.reading import Reader


@dataclass(frozen=True, kw_only=True)
class BeamSample(Beam):
    """As `Beam`, but the candidates of each step are drawn from all extensions by their summed scores.

    The same seed gives the tokens of transformers' `generate(do_sample=True, num_beams=...)` after
    `torch.manual_seed(seed)`. With one beam it is `Sample`.

    Args:
        temperature, top_k, top_p, seed: As in `Sample`; two tokens at least stay possible for each of several beams, so
            that one is left beside the end-of-text token.
    """

    temperature: float
    top_k: int
    top_p: float
    seed: int

    def __call__(self, reader: Reader, prompt: Prompt) -> list[Continuation]:
        """The `num_return` best continuations of a prompt, the best first; of the reader nothing is read."""
        return self.find(reader, prompt, drawing(prompt, self.seed))

    def processors(self, prompt: Prompt) -> list[Processor]:
        keep = 2 if self.num_beams > 1 else 1
        return super().processors(prompt) + narrowing(self.temperature, self.top_k, self.top_p, keep)
