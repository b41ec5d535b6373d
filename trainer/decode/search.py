"""The options that all decoding strategies share, token-by-token generation, and beam search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.constraints import Count, NonEmptyStr, NonNegativeInt, Positive, Rule, validated
from trainer.decode.generation import Continuation, Prompt, StoppingCriteria
from trainer.decode.kv_cache import DecodingSession
from trainer.decode.processors import Processor, ban_repeated_ngrams, ban_token_before, penalize_repetition
from trainer.errors import CheckpointError, format_error

Choose = Callable[[Tensor, int], Tensor]
"""Maps scores (..., V) and a count K to the indices of K of them, int64 (..., K)."""

_OUT: Final = -1e9
"""Added to the score of a candidate that must not be chosen: lower than every sum of log probabilities, but finite, so
that the order among such candidates still follows their scores if there are no others."""

_IMPOSSIBLE: Final = _OUT / 2
"""Lower than every sum of log probabilities."""


@dataclass(frozen=True, kw_only=True)
@validated(
    Rule(
        "min_new_tokens <= max_new_tokens",
        key="min_new_tokens",
        problem="must not be greater than max_new_tokens ({max_new_tokens})",
    )
)
class DecodingStrategy:
    """The options of all strategies.

    A text ends with the model's end-of-text token, with a string of `stop`, at the maximum number of tokens, or if no
    token is possible because each one would repeat an n-gram.

    Args:
        max_new_tokens: Maximum number of new tokens.
        min_new_tokens: Number of new tokens before the end-of-text token becomes possible.
        repetition_penalty: Divides the scores of tokens that are already in the text; 1 turns it off.
        no_repeat_ngram: Length of token sequences that must not occur twice; 0 turns it off.
        stop: Strings that end the text.
    """

    max_new_tokens: Count
    min_new_tokens: NonNegativeInt
    repetition_penalty: Positive
    no_repeat_ngram: NonNegativeInt
    stop: list[NonEmptyStr]

    def processors(self, prompt: Prompt) -> list[Processor]:
        """Return the score processors; options without an effect have none."""
        processors: list[Processor] = []
        if self.repetition_penalty != 1:
            processors.append(penalize_repetition(self.repetition_penalty))
        if self.no_repeat_ngram:
            processors.append(ban_repeated_ngrams(self.no_repeat_ngram))
        if self.min_new_tokens and prompt.end_id is not None:
            processors.append(ban_token_before(prompt.end_id, prompt.length + self.min_new_tokens))
        return processors

    def stopping_criteria(self, prompt: Prompt) -> StoppingCriteria:
        """Return the conditions that end the continuation of a prompt."""
        return StoppingCriteria(prompt, self.max_new_tokens, self.stop)

    def generate(self, session: DecodingSession, prompt: Prompt, choose: Choose, count: int = 1) -> list[Continuation]:
        """Continue `count` copies of a prompt in parallel, token by token, until each has ended.

        Args:
            session: A new session.
            prompt: The prompt.
            choose: Chooses from the processed scores (B, V).
            count: Number of texts, B.

        Raises:
            CheckpointError: The model's scores are not numbers.
        """
        criteria, processors = self.stopping_criteria(prompt), self.processors(prompt)
        ids = prompt.ids.repeat(count, 1)
        lengths = torch.full_like(ids[:, 0], prompt.length)
        unfinished = torch.ones_like(lengths, dtype=torch.bool)
        scores = feed_prompt(session, prompt, count)
        while True:
            scores = process(processors, ids, scores, prompt)
            possible = scores.amax(dim=-1) != -torch.inf
            # Finished texts stay in the batch: the tokens chosen for the others do not depend on them.
            tokens = choose(scores.masked_fill(~possible[:, None], 0.0), 1)
            ids = torch.cat([ids, tokens], dim=1)
            unfinished &= possible
            lengths += unfinished
            unfinished &= ~criteria.are_met(ids)
            if not unfinished.any():
                return [criteria.continuation(row[:length]) for row, length in zip(ids, lengths.tolist(), strict=True)]
            scores = session.feed(tokens)


def feed_prompt(session: DecodingSession, prompt: Prompt, count: int) -> Tensor:
    """Feed a prompt once and return the scores of the first new token of `count` texts, (B, V)."""
    scores = session.feed(prompt.ids[None])
    if count > 1:
        session.reorder(torch.zeros(count, dtype=torch.int64, device=scores.device))
    return scores.expand(count, -1)


def process(processors: Sequence[Processor], ids: Tensor, scores: Tensor, prompt: Prompt) -> Tensor:
    """Apply the processors to the scores of the token after `ids`, in order.

    Raises:
        CheckpointError: A score is NaN or positive infinity, so that no token can be chosen.
    """
    for processor in processors:
        scores = processor(ids, scores)
    if (scores.isnan() | (scores == inf)).any():
        number = ids.shape[1] - prompt.length + 1
        problem = f"the scores of new token {number} contain NaN or infinity"
        remedy = "Choose a checkpoint with finite weights, or set precision=fp32"
        raise CheckpointError(format_error("run", problem, remedy))
    return scores


def choose_best(scores: Tensor, count: int) -> Tensor:
    """Choose the highest scores; with a count of 1, the first of equal ones."""
    return scores.argmax(dim=-1, keepdim=True) if count == 1 else scores.topk(count).indices


def make_sampler(prompt: Prompt, seed: int) -> Choose:
    """Return a function that samples without replacement from the softmax of the scores."""
    generator = torch.Generator(prompt.ids.device).manual_seed(seed)
    return lambda scores, count: torch.multinomial(scores.softmax(dim=-1), count, generator=generator)


@dataclass(frozen=True)
class _Hypotheses:
    """The N best finished texts so far; slots without a text are unused.

    Attributes:
        ids: Token ids (N, `max_length`), padded after each text.
        lengths: Tokens of each text, int64 (N,).
        scores: Ranking scores, float32 (N,); far below any other in unused slots.
        used: Slots with a text, boolean (N,).
    """

    ids: Tensor
    lengths: Tensor
    scores: Tensor
    used: Tensor

    def merge(self, more: _Hypotheses) -> _Hypotheses:
        """Return the N best texts of both."""
        best = torch.cat([self.scores, more.scores]).topk(len(self.scores)).indices
        pairs = zip(vars(self).values(), vars(more).values(), strict=True)
        return _Hypotheses(*(torch.cat(pair)[best] for pair in pairs))


@dataclass(frozen=True)
class BeamSearch:
    """Beam search with the choices of transformers; the caller's function chooses the candidates.

    At each step every beam is extended by every token. Twice as many candidates as beams are chosen, so that enough
    remain if all beams end at once; only the first `num_beams` candidates may become finished texts. A beam that no
    token can follow is dropped; if this drops all beams and no text is finished, the beams are the result.

    Source: Graves 2012, https://arxiv.org/abs/1211.3711; ranking by normalized length after Wu et al. 2016,
    https://arxiv.org/abs/1609.08144.

    Args:
        criteria: The conditions that end a text.
        num_beams: Number of beams, N, at least 2.
        length_penalty: Exponent of the length that divides a score.
        early_stopping: As in `Beam`.
    """

    criteria: StoppingCriteria
    num_beams: int
    length_penalty: float
    early_stopping: bool | Literal["never"]

    def run(self, session: DecodingSession, processors: Sequence[Processor], choose: Choose) -> list[Continuation]:
        """Return the finished texts in descending order of score.

        Args:
            session: A new session.
            processors: Change the log probabilities of the next token.
            choose: Chooses 2 N candidates from the scores (N * V,).

        Raises:
            CheckpointError: The model's scores are not numbers.
        """
        count, prompt = self.num_beams, self.criteria.prompt
        ids = prompt.ids.repeat(count, 1)
        # All beams start equal, so only one of them may be extended at first.
        scores = torch.tensor([0.0] + [_OUT] * (count - 1), device=ids.device)
        padding = torch.zeros_like(ids[:, :1]).expand(-1, self.criteria.max_length)
        finished = self._hypotheses(padding, torch.zeros_like(scores), torch.zeros_like(scores, dtype=torch.bool))
        output = feed_prompt(session, prompt, count)
        while True:
            extended = process(processors, ids, output.log_softmax(dim=-1), prompt) + scores[:, None]
            if not (extended > _IMPOSSIBLE).any():
                beams = self._hypotheses(ids, scores, scores > _IMPOSSIBLE)
                return self._continuations(finished) or self._continuations(beams)
            picked = choose(extended.flatten(), 2 * count)
            parents, tokens = picked // extended.shape[1], picked % extended.shape[1]
            candidates = torch.cat([ids[parents], tokens[:, None]], dim=1)
            totals, ends = extended.flatten()[picked], self.criteria.are_met(candidates)
            may_finish = torch.arange(2 * count, device=ids.device) < count
            finished = finished.merge(self._hypotheses(candidates, totals, ends & may_finish))
            unfinished = totals + ends.float() * _OUT
            kept = unfinished.topk(count).indices
            ids, scores = candidates[kept], unfinished[kept]
            if ends.all() or self._is_complete(finished) or not self._can_improve(scores[0], finished, ids.shape[1]):
                return self._continuations(finished)
            session.reorder(parents[kept])
            output = session.feed(ids[:, -1:])

    def _hypotheses(self, ids: Tensor, totals: Tensor, used: Tensor) -> _Hypotheses:
        """Return texts (B, L) with their summed log probabilities (B,); the scores of unused ones are far below."""
        length = ids.shape[1]
        scores = totals / self._divisor(length) + (~used).float() * _OUT
        padded = F.pad(ids, (0, self.criteria.max_length - length))
        return _Hypotheses(padded, torch.full_like(ids[:, 0], length), scores, used)

    def _divisor(self, length: int) -> float:
        """Return the divisor of the log probability of a text with `length` tokens, including the prompt."""
        divisor: float = max(1, length - self.criteria.prompt.length) ** self.length_penalty
        return divisor

    def _is_complete(self, finished: _Hypotheses) -> bool:
        return self.early_stopping is True and bool(finished.used.all())

    def _can_improve(self, best: Tensor, finished: _Hypotheses, length: int) -> bool:
        """Return whether the best beam could still beat the worst finished text."""
        assume_longest = self.early_stopping == "never" and self.length_penalty > 0
        divisor = self._divisor(self.criteria.max_length if assume_longest else length)
        return bool(best / divisor > finished.scores.min())

    def _continuations(self, texts: _Hypotheses) -> list[Continuation]:
        """Return the texts, without impossible candidates that were chosen only because there were no others."""
        rows = zip(texts.ids, texts.lengths.tolist(), texts.scores.tolist(), texts.used.tolist(), strict=True)
        return [
            self.criteria.continuation(ids[:length], score)
            for ids, length, score, used in rows
            if used and score * self._divisor(length) > _IMPOSSIBLE
        ]
