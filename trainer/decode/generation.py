"""Prompts, their continuations, and the conversion between text and tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor

from trainer.decode.kv_cache import OpenSession
from trainer.task.tokenization import unknown_id

EndReason = Literal["end", "stop", "length", "context", "exhausted"]
"""Why a text ended:

* `end`: at the model's end-of-text token;
* `stop`: at a stop string;
* `length`: at `max_new_tokens`;
* `context`: at the maximum length that the model can read;
* `exhausted`: no token was possible.
"""


class PromptError(ValueError):
    """A prompt that the model cannot continue; the message says why."""


@dataclass(frozen=True)
class Prompt:
    """The tokens that a model continues.

    Attributes:
        ids: Token ids, int64 (T,), at least one, on the model's device.
        end_id: Id of the end-of-text token; None if there is no such token.
        max_length: Maximum number of tokens that the model reads, including the prompt; greater than T.
        decode: Converts token ids to text.
    """

    ids: Tensor
    end_id: int | None
    max_length: int
    decode: Callable[[Sequence[int]], str]

    @property
    def length(self) -> int:
        """Number of tokens, T."""
        return len(self.ids)


@dataclass(frozen=True)
class Continuation:
    """The tokens that follow a prompt.

    Attributes:
        ids: The new tokens, including the end-of-text token if there is one. Empty if no token was possible at once.
        ended: Why the text ended.
        score: The ranking score of beam search, log probability / length ** `length_penalty`; None for other
            strategies.
    """

    ids: tuple[int, ...]
    ended: EndReason
    score: float | None = None


@dataclass(frozen=True)
class StoppingCriteria:
    """The conditions that end the continuation of a prompt.

    Attributes:
        prompt: The prompt.
        max_new_tokens: Maximum number of new tokens.
        stop: Strings that end the text as soon as its new part contains one of them.
    """

    prompt: Prompt
    max_new_tokens: int
    stop: Sequence[str]

    @property
    def max_length(self) -> int:
        """Maximum number of tokens of the whole text; no sliding window, as later positions were never trained."""
        return min(self.prompt.length + self.max_new_tokens, self.prompt.max_length)

    def are_met(self, ids: Tensor) -> Tensor:
        """Return which of the texts (B, L) end with their last token, boolean (B,)."""
        if ids.shape[1] >= self.max_length:
            return torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        if self.prompt.end_id is not None:
            ended = ids[:, -1] == self.prompt.end_id
        if self.stop:
            texts = [self.prompt.decode(row) for row in ids[:, self.prompt.length :].tolist()]
            ended = ended | torch.tensor([any(map(text.__contains__, self.stop)) for text in texts], device=ids.device)
        return ended

    def continuation(self, ids: Tensor, score: float | None = None) -> Continuation:
        """Return the continuation in a whole text (L,) that has ended."""
        new = tuple(ids[self.prompt.length :].tolist())
        return Continuation(new, self._end_reason(new), score)

    def _end_reason(self, new: tuple[int, ...]) -> EndReason:
        if self.prompt.end_id is not None and new[-1:] == (self.prompt.end_id,):
            return "end"
        text = self.prompt.decode(new) if self.stop else ""
        if any(map(text.__contains__, self.stop)):
            return "stop"
        if len(new) == self.max_new_tokens:
            return "length"
        return "context" if self.prompt.length + len(new) == self.prompt.max_length else "exhausted"


@dataclass(frozen=True)
class GeneratedText:
    """A prompt's text with its continuation.

    Attributes:
        text: The prompt as it was written, followed by the completion.
        completion: The new text, without the stop string that ended it.
        tokens: Number of new tokens.
        ended: Why the text ended.
        score: The ranking score of beam search; None for other strategies.
    """

    text: str
    completion: str
    tokens: int
    ended: EndReason
    score: float | None


@dataclass(frozen=True)
class TokenProbability:
    """A token as text and its probability."""

    token: str
    probability: float


@dataclass(frozen=True)
class ExplainedStep:
    """The model's most likely next tokens at one step.

    Attributes:
        input: The text that the model had read.
        choices: The most likely tokens, in descending order of probability.
        chosen: The token that the decoding strategy chose.
    """

    input: str
    choices: tuple[TokenProbability, ...]
    chosen: TokenProbability


@dataclass(frozen=True)
class TextGenerator:
    """A language model with its tokenizer.

    Attributes:
        open_session: Opens a new decoding session of the model.
        tokenizer: Encodes prompts as the training texts were encoded, without truncation or padding.
        end_id: Id of the end-of-text token; None if there is no such token.
        max_length: Maximum number of tokens of a text that the model reads.
        device: Device of the model.
        context: Makes the context in which texts are generated; an artifact's reports the exceptions that it causes.
    """

    open_session: OpenSession
    tokenizer: Tokenizer
    end_id: int | None
    max_length: int
    device: torch.device
    context: Callable[[], AbstractContextManager[None]] = nullcontext

    def encode_prompt(self, text: str) -> Prompt:
        """Return the prompt of a text.

        Raises:
            PromptError: The text has no tokens, or too many to add one.
        """
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        if not ids:
            raise PromptError("is empty after tokenization")
        if len(ids) >= self.max_length:
            problem = f"has {len(ids)} tokens, but the model reads at most {self.max_length}, including new tokens"
            raise PromptError(problem)
        return Prompt(torch.tensor(ids, device=self.device), self.end_id, self.max_length, self.decode)

    def count_unknown_tokens(self, prompt: Prompt) -> int:
        """Return the number of tokens of a prompt that stand for words outside the vocabulary."""
        unknown = unknown_id(self.tokenizer)
        return 0 if unknown is None else int((prompt.ids == unknown).sum())

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, without special tokens."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def complete(self, text: str, prompt: Prompt, continuation: Continuation, stop: Sequence[str]) -> GeneratedText:
        """Return `text` with the continuation of its prompt; `stop` are the strings that may have ended it."""
        beginning = prompt.ids.tolist()
        special = {id for id, token in self.tokenizer.get_added_tokens_decoder().items() if token.special}
        new = [id for id in continuation.ids if id not in special]
        # Decoded together with the prompt: whether a space precedes a token depends on the tokens before it, including
        # unknown ones.
        completion = self._decode_all([*beginning, *new]).removeprefix(self._decode_all(beginning))
        if continuation.ended == "stop":
            completion = completion[: min((at for at in map(completion.find, stop) if at >= 0), default=None)]
        return GeneratedText(
            text + completion, completion, len(continuation.ids), continuation.ended, continuation.score
        )

    def explain(self, prompt: Prompt, continuation: Continuation, count: int) -> list[ExplainedStep]:
        """Return the `count` most likely next tokens at each step of a continuation.

        The probabilities are the model's own, before temperature, penalties and limits.
        """
        session = self.open_session()
        beginning = prompt.ids.tolist()
        scores = session.feed(prompt.ids[None])
        steps = []
        for index, token in enumerate(continuation.ids):
            probabilities = scores[0].softmax(dim=-1)
            best = probabilities.topk(min(count, len(probabilities))).indices.tolist()
            steps.append(
                ExplainedStep(
                    input=self._decode_all([*beginning, *continuation.ids[:index]]),
                    choices=tuple(self._probability(id, probabilities) for id in best),
                    chosen=self._probability(token, probabilities),
                )
            )
            if index + 1 < len(continuation.ids):
                scores = session.feed(torch.tensor([[token]], device=self.device))
        return steps

    def _probability(self, token_id: int, probabilities: Tensor) -> TokenProbability:
        return TokenProbability(self._decode_all([token_id]), float(probabilities[token_id]))

    def _decode_all(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, including special tokens."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False)
        return text
