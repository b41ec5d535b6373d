"""Greedy decoding: each token is the best one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from trainer.decode.decoding import Decoding
from trainer.decode.prompt import Continuation, Prompt
from trainer.decode.reading import Reader


@dataclass(frozen=True, kw_only=True)
class Greedy(Decoding):
    """Takes the token with the highest processed score at each step."""

    def __call__(self, reader: Reader, prompt: Prompt) -> list[Continuation]:
        """The one continuation of a prompt; of the reader nothing is read."""
        return self.extend(reader, prompt, likeliest)


def likeliest(scores: Tensor, count: int) -> Tensor:
    """The best, the first of equal ones where it is one."""
    return scores.argmax(dim=-1, keepdim=True) if count == 1 else scores.topk(count).indices
