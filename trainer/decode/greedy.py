"""Greedy decoding: each token is the best one."""

from __future__ import annotations

from trainer.decode.processors import constraints
from trainer.decode.prompt import Continuation, Ending, Prompt
from trainer.decode.reading import Reader
from trainer.decode.sample import extend


def greedy(
    reader: Reader,
    prompt: Prompt,
    *,
    max_new_tokens: int,
    min_new_tokens: int,
    repetition_penalty: float,
    no_repeat_ngram: int,
    stop: list[str],
) -> list[Continuation]:
    """Takes the token with the highest processed score at each step: one continuation.

    Args:
        reader: Of which nothing is read.
        prompt: What the text goes on from.
        max_new_tokens: The most tokens that are added.
        min_new_tokens: The end-of-text token is impossible before so many.
        repetition_penalty: Divides the scores of tokens that stand in the text; 1: none.
        no_repeat_ngram: No sequence of so many tokens occurs twice; 0: any may.
        stop: Strings that end the text.
    """
    processors = constraints(
        prompt,
        repetition_penalty=repetition_penalty,
        no_repeat_ngram=no_repeat_ngram,
        min_new_tokens=min_new_tokens,
    )
    return extend(reader, Ending(prompt, max_new_tokens, stop), processors, lambda scores: scores.argmax(dim=-1), 1)
