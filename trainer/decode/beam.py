"""Beam search: the likeliest texts among those that keep the best beginnings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.decode.greedy import greedy
from trainer.decode.processors import Processor, constraints, processed
from trainer.decode.prompt import Continuation, Ending, Prompt
from trainer.decode.reading import Reader

EarlyStopping = bool | Literal["never"]

_OUT = -1e9
"""Added to the score of what cannot be chosen: below every sum of log probabilities, and yet no infinity, so that
where nothing else is left the order among them still follows their scores."""


def beam(
    reader: Reader,
    prompt: Prompt,
    *,
    max_new_tokens: int,
    min_new_tokens: int,
    num_beams: int,
    length_penalty: float,
    early_stopping: bool | Literal["never"],
    repetition_penalty: float,
    no_repeat_ngram: int,
    num_return: int,
    stop: list[str],
) -> list[Continuation]:
    """The `num_return` best continuations that beam search finds, the best first; with one beam the greedy one.

    A continuation's score is the sum of its tokens' processed log probabilities, divided by length ** `length_penalty`.

    Args:
        reader: Of which nothing is read.
        prompt: What the text goes on from.
        max_new_tokens: The most tokens that are added.
        min_new_tokens: The end-of-text token is impossible before so many.
        num_beams: Beginnings kept at each step.
        length_penalty: Above 0 longer texts gain, below 0 shorter ones.
        early_stopping: True: ends when `num_beams` texts have ended; False: when none of those that go on would be
            better than these if it ended now; `never`: when none could become better.
        repetition_penalty: Divides the scores of tokens that stand in the text; 1: none.
        no_repeat_ngram: No sequence of so many tokens occurs twice; 0: any may.
        num_return: Continuations, at most `num_beams`.
        stop: Strings that end the text.
    """
    if num_beams == 1:
        return greedy(
            reader,
            prompt,
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            repetition_penalty=repetition_penalty,
            no_repeat_ngram=no_repeat_ngram,
            stop=stop,
        )
    processors = constraints(
        prompt,
        repetition_penalty=repetition_penalty,
        no_repeat_ngram=no_repeat_ngram,
        min_new_tokens=min_new_tokens,
    )
    search = Search(Ending(prompt, max_new_tokens, stop), num_beams, length_penalty, early_stopping)
    return search.run(reader, processors, _best)[:num_return]


def _best(scores: Tensor, count: int) -> Tensor:
    return scores.topk(count).indices


@dataclass(frozen=True)
class _Ended:
    """The N best texts that have ended so far; where there are fewer, the places left over hold none.

    Attributes:
        ids: Their tokens (N, `max_length`), filled up after each one's length.
        lengths: Tokens of each, int64 (N,).
        scores: float32 (N,); far below any other where there is no text.
        there: Where there is one, boolean (N,).
    """

    ids: Tensor
    lengths: Tensor
    scores: Tensor
    there: Tensor

    def with_more(self, more: _Ended) -> _Ended:
        """The N best of both."""
        best = torch.cat([self.scores, more.scores]).topk(len(self.scores)).indices
        pairs = zip(vars(self).values(), vars(more).values(), strict=True)
        return _Ended(*(torch.cat(pair)[best] for pair in pairs))


@dataclass(frozen=True)
class Search:
    """Beam search that chooses as transformers' does, the candidates by a function of the caller.

    At each step every beam is extended by every token. Twice as many candidates as beams are taken, so that as many
    are left to go on where all beams end at once; only those among the first `num_beams` may enter the texts that
    have ended.

    Source: Graves 2012, https://arxiv.org/abs/1211.3711; ranking by normalized length after Wu et al. 2016,
    https://arxiv.org/abs/1609.08144.

    Args:
        ending: When a text ends.
        num_beams: Beginnings kept, N, at least 2.
        length_penalty: The exponent of the length that a score is divided by.
        early_stopping: As in `beam`.
    """

    ending: Ending
    num_beams: int
    length_penalty: float
    early_stopping: EarlyStopping

    def run(
        self, reader: Reader, processors: Sequence[Processor], pick: Callable[[Tensor, int], Tensor]
    ) -> list[Continuation]:
        """The texts that have ended, the best first.

        Args:
            reader: Of which nothing is read.
            processors: What changes the log probabilities of the next token.
            pick: Scores (N * V,) and a count K to the numbers of K candidates, int64 (K,).
        """
        prompt, count = self.ending.prompt, self.num_beams
        ids = prompt.ids.repeat(count, 1)
        scores = torch.full((count,), _OUT, device=ids.device)
        # All beams are the same at first, and only one of them may be extended.
        scores[0] = 0.0
        ended = self._none_ended(ids)
        output = reader.read(prompt.ids[None]).expand(count, -1)
        reader.keep(torch.zeros(count, dtype=torch.int64, device=ids.device))
        while True:
            added = processed(processors, ids, output.log_softmax(dim=-1))
            totals = (added + scores[:, None]).flatten()
            picked = pick(totals, 2 * count)
            came_from, tokens = picked // added.shape[1], picked % added.shape[1]
            candidates = torch.cat([ids[came_from], tokens[:, None]], dim=1)
            totals, ends = totals[picked], self.ending.reached(candidates)
            ended = ended.with_more(self._newly_ended(candidates, totals, ends))
            going_on = totals + ends.float() * _OUT
            chosen = going_on.topk(count).indices
            ids, scores = candidates[chosen], going_on[chosen]
            if ends.all() or self._is_enough(ended) or not self._may_improve(scores, ended, ids.shape[1]):
                return self._continuations(ended)
            reader.keep(came_from[chosen])
            output = reader.read(ids[:, -1:])

    def _none_ended(self, ids: Tensor) -> _Ended:
        filled = torch.zeros(self.num_beams, self.ending.max_length, dtype=torch.int64, device=ids.device)
        return _Ended(
            filled,
            torch.zeros_like(filled[:, 0]),
            torch.full_like(filled[:, 0], _OUT, dtype=torch.float32),
            torch.zeros_like(filled[:, 0], dtype=torch.bool),
        )

    def _newly_ended(self, candidates: Tensor, totals: Tensor, ends: Tensor) -> _Ended:
        """The candidates as texts that have ended; the scores of those that have not are far below all others."""
        length = candidates.shape[1]
        there = ends & (torch.arange(len(ends), device=ends.device) < self.num_beams)
        scores = totals / (length - self.ending.prompt.length) ** self.length_penalty + (~there).float() * _OUT
        ids = F.pad(candidates, (0, self.ending.max_length - length))
        return _Ended(ids, torch.full_like(ids[:, 0], length), scores, there)

    def _is_enough(self, ended: _Ended) -> bool:
        return self.early_stopping is True and bool(ended.there.all())

    def _may_improve(self, scores: Tensor, ended: _Ended, length: int) -> bool:
        """Whether the best beam could still end better than the worst text that has ended."""
        farthest = self.early_stopping == "never" and self.length_penalty > 0
        new = (self.ending.max_length if farthest else length) - self.ending.prompt.length
        return bool(scores[0] / new**self.length_penalty > ended.scores.min())

    def _continuations(self, ended: _Ended) -> list[Continuation]:
        """The texts that have ended, but for those of candidates that were impossible and taken for want of others."""
        new = ended.lengths - self.ending.prompt.length
        possible = ended.there & (ended.scores * new**self.length_penalty > _OUT / 2)
        rows = zip(ended.ids, ended.lengths.tolist(), ended.scores.tolist(), possible.tolist(), strict=True)
        return [self.ending.continuation(ids[:length], score) for ids, length, score, is_text in rows if is_text]
