"""Beam sampling: beam search whose candidates are drawn."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from trainer.decode.beam import Search
from trainer.decode.processors import constraints, narrowing
from trainer.decode.prompt import Continuation, Ending, Prompt
from trainer.decode.reading import Reader
from trainer.decode.sample import sample


def beam_sample(
    reader: Reader,
    prompt: Prompt,
    *,
    max_new_tokens: int,
    min_new_tokens: int,
    num_beams: int,
    length_penalty: float,
    early_stopping: bool | Literal["never"],
    temperature: float,
    top_k: int,
    top_p: float,
    repetition_penalty: float,
    no_repeat_ngram: int,
    num_return: int,
    seed: int,
    stop: list[str],
) -> list[Continuation]:
    """As `beam`, but the candidates of each step are drawn from all extensions by their summed scores.

    The same seed gives the tokens of transformers' `generate(do_sample=True, num_beams=...)` after
    `torch.manual_seed(seed)`. With one beam it is `sample`.

    Args:
        reader: Of which nothing is read.
        prompt: What the text goes on from.
        max_new_tokens, min_new_tokens, repetition_penalty, no_repeat_ngram, stop: As in `greedy`.
        num_beams, length_penalty, early_stopping, num_return: As in `beam`.
        temperature, top_k, top_p, seed: As in `sample`; two tokens at least stay possible for each beam, so that one
            is left beside the end-of-text token.
    """
    if num_beams == 1:
        return sample(
            reader,
            prompt,
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            no_repeat_ngram=no_repeat_ngram,
            num_return=num_return,
            seed=seed,
            stop=stop,
        )
    generator = torch.Generator(prompt.ids.device).manual_seed(seed)

    def draw(scores: Tensor, count: int) -> Tensor:
        return torch.multinomial(scores.softmax(dim=-1), count, generator=generator)

    processors = [
        *constraints(
            prompt,
            repetition_penalty=repetition_penalty,
            no_repeat_ngram=no_repeat_ngram,
            min_new_tokens=min_new_tokens,
        ),
        *narrowing(temperature=temperature, top_k=top_k, top_p=top_p, keep=2),
    ]
    search = Search(Ending(prompt, max_new_tokens, stop), num_beams, length_penalty, early_stopping)
    return search.run(reader, processors, draw)[:num_return]
