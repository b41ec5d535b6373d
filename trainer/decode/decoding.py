"""What every strategy has: how long a text becomes and what may not stand in it; and how one or several are written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.decode.processors import Processor, ban_repeated_ngrams, ban_token_before, penalize_repetition, processed
from trainer.decode.prompt import Continuation, Ending, Prompt
from trainer.decode.reading import Reader

Choose = Callable[[Tensor, int], Tensor]
"""Scores (..., V) and a count K to the numbers of K of them, int64 (..., K)."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """The settings of every strategy.

    A text ends with the model's own end-of-text token, with a string of `stop`, at the most tokens, and where no token
    is possible any more, as each would repeat an n-gram.

    Args:
        max_new_tokens: The most tokens that are added.
        min_new_tokens: The end-of-text token is impossible before so many.
        repetition_penalty: Divides the scores of tokens that stand in the text; 1: none.
        no_repeat_ngram: No sequence of so many tokens occurs twice; 0: any may.
        stop: Strings that end the text.
    """

    max_new_tokens: int
    min_new_tokens: int
    repetition_penalty: float
    no_repeat_ngram: int
    stop: list[str]

    def processors(self, prompt: Prompt) -> list[Processor]:
        """What changes the scores; values without an effect are left out."""
        found: list[Processor] = []
        if self.repetition_penalty != 1:
            found.append(penalize_repetition(self.repetition_penalty))
        if self.no_repeat_ngram:
            found.append(ban_repeated_ngrams(self.no_repeat_ngram))
        if self.min_new_tokens and prompt.end_id is not None:
            found.append(ban_token_before(prompt.end_id, prompt.length + self.min_new_tokens))
        return found

    def ending(self, prompt: Prompt) -> Ending:
        """When a text that goes on from a prompt ends."""
        return Ending(prompt, self.max_new_tokens, self.stop)

    def extend(self, reader: Reader, prompt: Prompt, choose: Choose, count: int = 1) -> list[Continuation]:
        """Goes on with `count` texts side by side, token by token, until each has ended.

        Args:
            reader: Of which nothing is read.
            prompt: What they go on from.
            choose: Takes the processed scores (B, V).
            count: Texts, B.
        """
        ending, processors = self.ending(prompt), self.processors(prompt)
        ids = prompt.ids.repeat(count, 1)
        lengths = torch.full_like(ids[:, 0], prompt.length)
        going_on = torch.ones_like(lengths, dtype=torch.bool)
        scores = read_prompt(reader, prompt, count)
        while True:
            scores = processed(processors, ids, scores)
            possible = scores.amax(dim=-1) != -torch.inf
            # Texts that have ended go on unread: what is chosen for the others does not depend on them.
            tokens = choose(scores.masked_fill(~possible[:, None], 0.0), 1)
            ids = torch.cat([ids, tokens], dim=1)
            going_on &= possible
            lengths += going_on
            going_on &= ~ending.reached(ids)
            if not going_on.any():
                return [ending.continuation(row[:length]) for row, length in zip(ids, lengths.tolist(), strict=True)]
            scores = reader.read(tokens)


def read_prompt(reader: Reader, prompt: Prompt, count: int) -> Tensor:
    """Reads a prompt once, for `count` texts that go on from it; scores of their first tokens (B, V)."""
    scores = reader.read(prompt.ids[None])
    if count > 1:
        reader.keep(torch.zeros(count, dtype=torch.int64, device=scores.device))
    return scores.expand(count, -1)


def drawing(prompt: Prompt, seed: int) -> Choose:
    """SampleRng without replacement, each with the probability that the scores give it."""
    generator = torch.Generator(prompt.ids.device).manual_seed(seed)
    return lambda scores, count: torch.multinomial(scores.softmax(dim=-1), count, generator=generator)
