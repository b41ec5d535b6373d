"""Sampling: each token is drawn from the model's distribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trainer.decode.processors import Processor, constraints, narrowing, processed
from trainer.decode.prompt import Continuation, Ending, Prompt
from trainer.decode.reading import Reader


def sample(
    reader: Reader,
    prompt: Prompt,
    *,
    max_new_tokens: int,
    min_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    repetition_penalty: float,
    no_repeat_ngram: int,
    num_return: int,
    seed: int,
    stop: list[str],
) -> list[Continuation]:
    """Draws `num_return` continuations, each token with the probability that the processed scores give it.

    The same seed gives the tokens of transformers' `generate(do_sample=True)` after `torch.manual_seed(seed)`.

    Args:
        reader: Of which nothing is read.
        prompt: What the text goes on from.
        max_new_tokens: The most tokens that are added.
        min_new_tokens: The end-of-text token is impossible before so many.
        temperature: Divides the scores: below 1 the likely becomes likelier.
        top_k: Only so many best tokens are possible; 0: all are.
        top_p: Only the best tokens are possible that together are so probable; 1: all are.
        repetition_penalty: Divides the scores of tokens that stand in the text; 1: none.
        no_repeat_ngram: No sequence of so many tokens occurs twice; 0: any may.
        num_return: Continuations.
        seed: Of the draws.
        stop: Strings that end the text.
    """
    generator = torch.Generator(prompt.ids.device).manual_seed(seed)

    def draw(scores: Tensor) -> Tensor:
        return torch.multinomial(scores.softmax(dim=-1), 1, generator=generator).squeeze(1)

    processors = [
        *constraints(
            prompt,
            repetition_penalty=repetition_penalty,
            no_repeat_ngram=no_repeat_ngram,
            min_new_tokens=min_new_tokens,
        ),
        *narrowing(temperature=temperature, top_k=top_k, top_p=top_p),
    ]
    return extend(reader, Ending(prompt, max_new_tokens, stop), processors, draw, num_return)


def extend(
    reader: Reader,
    ending: Ending,
    processors: Sequence[Processor],
    choose: Callable[[Tensor], Tensor],
    count: int,
) -> list[Continuation]:
    """Goes on with `count` sequences side by side, token by token, until each has ended.

    Args:
        reader: Of which nothing is read.
        ending: When they end.
        processors: What changes the scores.
        choose: Scores (B, V) to the next tokens (B,).
        count: Sequences, B.
    """
    prompt = ending.prompt
    ids = prompt.ids.repeat(count, 1)
    lengths = torch.full((count,), ending.max_length)
    open_rows = torch.ones(count, dtype=torch.bool, device=ids.device)
    scores = reader.read(prompt.ids[None])
    if count > 1:
        reader.keep(torch.zeros(count, dtype=torch.int64, device=ids.device))
        scores = scores.expand(count, -1)
    while True:
        # Sequences that have ended go on unread: what is drawn for the others does not depend on them.
        tokens = choose(processed(processors, ids, scores))
        ids = torch.cat([ids, tokens[:, None]], dim=1)
        ended = open_rows & ending.reached(ids)
        lengths[ended.cpu()] = ids.shape[1]
        open_rows &= ~ended
        if not open_rows.any():
            return [ending.continuation(row[:length]) for row, length in zip(ids, lengths.tolist(), strict=True)]
        scores = reader.read(tokens[:, None])
