"""The search of several beginnings at once, whose best are kept at each step; how candidates are taken is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.decode.decoding import Choose, read_prompt
from trainer.decode.processors import Processor, processed
from trainer.decode.prompt import Continuation, Ending
from trainer.decode.reading import Reader

_OUT = -1e9
"""Added to the score of what cannot be chosen: below every sum of log probabilities, and yet no infinity, so that
where nothing else is left the order among them still follows their scores."""

_IMPOSSIBLE = _OUT / 2
"""No sum of log probabilities is as low."""


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
    have ended. A beam that no token can follow is given up; where that is all beams and no text has ended, they are
    the texts.

    Source: Graves 2012, https://arxiv.org/abs/1211.3711; ranking by normalized length after Wu et al. 2016,
    https://arxiv.org/abs/1609.08144.

    Args:
        ending: When a text ends.
        num_beams: Beginnings kept, N, at least 2.
        length_penalty: The exponent of the length that a score is divided by.
        early_stopping: As in `Beam`.
    """

    ending: Ending
    num_beams: int
    length_penalty: float
    early_stopping: bool | Literal["never"]

    def run(self, reader: Reader, processors: Sequence[Processor], choose: Choose) -> list[Continuation]:
        """The texts that have ended, the best first.

        Args:
            reader: Of which nothing is read.
            processors: What changes the log probabilities of the next token.
            choose: Takes the candidates, 2 N of the scores (N * V,).
        """
        count = self.num_beams
        ids = self.ending.prompt.ids.repeat(count, 1)
        # All beams are the same at first, and only one of them may be extended.
        scores = torch.tensor([0.0] + [_OUT] * (count - 1), device=ids.device)
        nothing = torch.zeros_like(ids[:, :1]).expand(-1, self.ending.max_length)
        ended = self._texts(nothing, torch.zeros_like(scores), torch.zeros_like(scores, dtype=torch.bool))
        output = read_prompt(reader, self.ending.prompt, count)
        while True:
            extended = processed(processors, ids, output.log_softmax(dim=-1)) + scores[:, None]
            if not (extended > _IMPOSSIBLE).any():
                return self._continuations(ended) or self._continuations(self._texts(ids, scores, scores > _IMPOSSIBLE))
            picked = choose(extended.flatten(), 2 * count)
            came_from, tokens = picked // extended.shape[1], picked % extended.shape[1]
            candidates = torch.cat([ids[came_from], tokens[:, None]], dim=1)
            totals, ends = extended.flatten()[picked], self.ending.reached(candidates)
            may_enter = torch.arange(2 * count, device=ids.device) < count
            ended = ended.with_more(self._texts(candidates, totals, ends & may_enter))
            going_on = totals + ends.float() * _OUT
            kept = going_on.topk(count).indices
            ids, scores = candidates[kept], going_on[kept]
            if ends.all() or self._is_enough(ended) or not self._may_improve(scores[0], ended, ids.shape[1]):
                return self._continuations(ended)
            reader.keep(came_from[kept])
            output = reader.read(ids[:, -1:])

    def _texts(self, ids: Tensor, totals: Tensor, there: Tensor) -> _Ended:
        """Texts (B, L) with their summed log probabilities; the scores of those that are not `there` are far below."""
        length = ids.shape[1]
        scores = totals / self._weight(length) + (~there).float() * _OUT
        return _Ended(
            F.pad(ids, (0, self.ending.max_length - length)), torch.full_like(ids[:, 0], length), scores, there
        )

    def _weight(self, length: int) -> float:
        """What the sum of a text of this length, the prompt included, is divided by."""
        weight: float = max(1, length - self.ending.prompt.length) ** self.length_penalty
        return weight

    def _is_enough(self, ended: _Ended) -> bool:
        return self.early_stopping is True and bool(ended.there.all())

    def _may_improve(self, best: Tensor, ended: _Ended, length: int) -> bool:
        """Whether the best beam could still end better than the worst text that has ended."""
        farthest = self.early_stopping == "never" and self.length_penalty > 0
        return bool(best / self._weight(self.ending.max_length if farthest else length) > ended.scores.min())

    def _continuations(self, ended: _Ended) -> list[Continuation]:
        """The texts that have ended, but for those of candidates that were impossible and taken for want of others."""
        rows = zip(ended.ids, ended.lengths.tolist(), ended.scores.tolist(), ended.there.tolist(), strict=True)
        return [
            self.ending.continuation(ids[:length], score)
            for ids, length, score, there in rows
            if there and score * self._weight(length) > _IMPOSSIBLE
        ]
