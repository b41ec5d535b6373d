"""What a text goes on from, when it ends, and how it went on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Ended = Literal["end", "stop", "length", "context", "exhausted"]
"""Why a text ended: by the model's own end-of-text token, by a stop string, at `max_new_tokens`, as there was no more
room in what the model can read, or as no token was possible."""


@dataclass(frozen=True)
class Prompt:
    """The beginning of a text.

    Attributes:
        ids: Its tokens, int64 (T,), at least one, on the model's device.
        end_id: The token that ends a text; None: none does.
        max_length: The most tokens that the model reads, the prompt's included; above T.
        text_of: Tokens to text.
    """

    ids: Tensor
    end_id: int | None
    max_length: int
    text_of: Callable[[Sequence[int]], str]

    @property
    def length(self) -> int:
        """Its tokens, T."""
        return len(self.ids)


@dataclass(frozen=True)
class Continuation:
    """What came after a prompt.

    Attributes:
        ids: The new tokens; the last one is the end-of-text token where that ended it. None where at once none was
            possible.
        ended: Why it ended.
        score: What beam search ranks by: the log probability divided by length ** `length_penalty`; None elsewhere.
    """

    ids: tuple[int, ...]
    ended: Ended
    score: float | None = None


@dataclass(frozen=True)
class Ending:
    """When a text that goes on from `prompt` ends.

    Attributes:
        prompt: The prompt.
        max_new_tokens: The most tokens that are added.
        stop: Strings that end the text as soon as what was added holds one.
    """

    prompt: Prompt
    max_new_tokens: int
    stop: Sequence[str]

    @property
    def max_length(self) -> int:
        """The most tokens of the whole text. It does not slide on: positions that far were never trained."""
        return min(self.prompt.length + self.max_new_tokens, self.prompt.max_length)

    def reached(self, ids: Tensor) -> Tensor:
        """Which of the texts (B, L) end with their last token: boolean (B,)."""
        if ids.shape[1] >= self.max_length:
            return torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        if self.prompt.end_id is not None:
            ended = ids[:, -1] == self.prompt.end_id
        if self.stop:
            texts = [self.prompt.text_of(row) for row in ids[:, self.prompt.length :].tolist()]
            ended = ended | torch.tensor([any(map(text.__contains__, self.stop)) for text in texts], device=ids.device)
        return ended

    def continuation(self, ids: Tensor, score: float | None = None) -> Continuation:
        """A whole text (L,) that has ended as what came after the prompt, and why it ended."""
        new = tuple(ids[self.prompt.length :].tolist())
        return Continuation(new, self._why(new), score)

    def _why(self, new: tuple[int, ...]) -> Ended:
        if self.prompt.end_id is not None and new[-1:] == (self.prompt.end_id,):
            return "end"
        text = self.prompt.text_of(new) if self.stop else ""
        if any(map(text.__contains__, self.stop)):
            return "stop"
        if len(new) == self.max_new_tokens:
            return "length"
        return "context" if self.prompt.length + len(new) == self.prompt.max_length else "exhausted"
