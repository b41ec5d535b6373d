"""Texts around the tokens: a prompt's text to its tokens, continuations to text, and why each token was likely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from trainer.decode.prompt import Continuation, Ended, Prompt
from trainer.decode.reading import OpenReader
from trainer.task.tokenization import unknown_id


class PromptError(ValueError):
    """A text that cannot be gone on from; the message says why."""


@dataclass(frozen=True)
class Written:
    """A text with its continuation.

    Attributes:
        text: The prompt as it was given, and the completion.
        completion: What follows the prompt, without the stop string that ended it.
        tokens: How many tokens came after the prompt.
        ended: Why it ended.
        score: What beam search ranks by; None elsewhere.
    """

    text: str
    completion: str
    tokens: int
    ended: Ended
    score: float | None


@dataclass(frozen=True)
class Choice:
    """A next token and its probability."""

    token: str
    probability: float


@dataclass(frozen=True)
class Step:
    """What the model held likely after `input`, the tokens that it had read; the best first, and what was chosen."""

    input: str
    choices: tuple[Choice, ...]
    chosen: Choice


@dataclass(frozen=True)
class TextGenerator:
    """A language model with its tokenizer.

    Attributes:
        open_reader: A reader of the model, of which nothing is read.
        tokenizer: Encodes a prompt as the texts that the model was trained on; neither cuts nor pads.
        end_id: The token that ends a text; None: none does.
        max_length: The most tokens of a text that the model reads.
        device: Where the model is.
    """

    open_reader: OpenReader
    tokenizer: Tokenizer
    end_id: int | None
    max_length: int
    device: torch.device

    def prompt(self, text: str) -> Prompt:
        """The prompt of a text.

        Raises:
            PromptError: It has no token, or so many that none can follow.
        """
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        if not ids:
            raise PromptError("has no token to go on from")
        if len(ids) >= self.max_length:
            raise PromptError(f"has {len(ids)} tokens, and the model reads {self.max_length}, the new ones included")
        return Prompt(torch.tensor(ids, device=self.device), self.end_id, self.max_length, self.text_of)

    def num_unknown(self, prompt: Prompt) -> int:
        """How many tokens of a prompt stand for what the vocabulary does not know."""
        unknown = unknown_id(self.tokenizer)
        return 0 if unknown is None else int((prompt.ids == unknown).sum())

    def text_of(self, ids: Sequence[int]) -> str:
        """Tokens as text, special ones left out."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def written(self, text: str, prompt: Prompt, continuation: Continuation, stop: Sequence[str]) -> Written:
        """A continuation of `text`, whose prompt is `prompt`; `stop` are the strings that may have ended it."""
        beginning = prompt.ids.tolist()
        special = {id for id, token in self.tokenizer.get_added_tokens_decoder().items() if token.special}
        new = [id for id in continuation.ids if id not in special]
        # Not the new tokens alone: whether there is a space before them is seen beside those they follow, unknown ones
        # among them.
        completion = self._read([*beginning, *new]).removeprefix(self._read(beginning))
        if continuation.ended == "stop":
            completion = completion[: min((at for at in map(completion.find, stop) if at >= 0), default=None)]
        return Written(text + completion, completion, len(continuation.ids), continuation.ended, continuation.score)

    def format_error(self, prompt: Prompt, continuation: Continuation, count: int) -> list[Step]:
        """The `count` likeliest next tokens at each step of a continuation.

        The probabilities are the model's own, before temperature, penalties and limits: what greedy decoding without
        any of these chooses from.
        """
        reader = self.open_reader()
        beginning = prompt.ids.tolist()
        scores = reader.read(prompt.ids[None])
        steps = []
        for place, token in enumerate(continuation.ids):
            probabilities = scores[0].softmax(dim=-1)
            best = probabilities.topk(min(count, len(probabilities))).indices.tolist()
            steps.append(
                Step(
                    input=self._read([*beginning, *continuation.ids[:place]]),
                    choices=tuple(self._choice(each, probabilities) for each in best),
                    chosen=self._choice(token, probabilities),
                )
            )
            if place + 1 < len(continuation.ids):
                scores = reader.read(torch.tensor([[token]], device=self.device))
        return steps

    def _choice(self, token_id: int, probabilities: Tensor) -> Choice:
        return Choice(self._read([token_id]), float(probabilities[token_id]))

    def _read(self, ids: Sequence[int]) -> str:
        """Tokens as the model reads them, special ones as well."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False)
        return text
