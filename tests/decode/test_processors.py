"""Score processors: known values, and transformers' own processors."""

from math import inf, log
from typing import Any

import torch
from torch import Tensor

from tests.support.language_models import PLAIN, prompt_of
from trainer.decode.processors import (
    ban_repeated_ngrams,
    ban_token_before,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
    sampling_processors,
)
from trainer.decode.search import DecodingStrategy, process

PROBABILITIES = torch.tensor([[log(0.15), log(0.5), log(0.05), log(0.3)]])


def banned(scores: Tensor) -> list[set[int]]:
    return [set(row.nonzero().flatten().tolist()) for row in scores == -inf]


def possible(scores: Tensor) -> set[int]:
    (row,) = scores
    return set((row != -inf).nonzero().flatten().tolist())


def test_repetition_penalty_lowers_positive_and_negative_scores() -> None:
    scores = torch.tensor([[2.0, -2.0, 1.0], [2.0, -2.0, 1.0]])
    changed = penalize_repetition(2.0)(torch.tensor([[0, 1, 1], [2, 2, 2]]), scores)

    assert changed.tolist() == [[1.0, -4.0, 1.0], [2.0, -2.0, 0.5]]
    assert scores.tolist() == [[2.0, -2.0, 1.0]] * 2


def test_tokens_that_would_repeat_an_ngram_are_banned() -> None:
    cases: list[Any] = [
        (1, [3, 1, 3], {1, 3}),
        (2, [1, 2, 1, 4, 1], {2, 4}),
        (3, [1, 2, 3, 1, 2], {3}),
        (3, [1, 1, 1], {1}),
        (2, [1], set()),
        (2, [1, 2, 3], set()),
        (4, [1, 2, 1, 2], set()),
    ]
    for size, ids, tokens in cases:
        assert banned(ban_repeated_ngrams(size)(torch.tensor([ids]), torch.zeros(1, 5))) == [tokens]


def test_each_row_bans_its_own_ngrams() -> None:
    assert banned(ban_repeated_ngrams(2)(torch.tensor([[1, 2, 1], [3, 3, 3]]), torch.zeros(2, 5))) == [{2}, {3}]


def test_token_is_banned_before_a_length() -> None:
    process_end = ban_token_before(4, length=3)
    assert banned(process_end(torch.tensor([[1, 2]]), torch.zeros(1, 5))) == [{4}]
    assert banned(process_end(torch.tensor([[1, 2, 3]]), torch.zeros(1, 5))) == [set()]


def test_top_k_keeps_the_best_tokens_and_ties() -> None:
    for k, tokens in [(1, {2}), (2, {0, 2, 3}), (9, {0, 1, 2, 3})]:
        assert possible(keep_top_k(k)(torch.tensor([[0]]), torch.tensor([[1.0, 0.0, 3.0, 1.0]]))) == tokens


def test_top_p_keeps_the_smallest_sufficient_set() -> None:
    cases: list[Any] = [(0.5, 1, {1}), (0.51, 1, {1, 3}), (0.99, 1, {0, 1, 2, 3}), (0.1, 2, {1, 3})]
    for p, keep, tokens in cases:
        assert possible(keep_top_p(p, keep)(torch.tensor([[0]]), PROBABILITIES)) == tokens


def test_options_without_an_effect_have_no_processor() -> None:
    assert DecodingStrategy(**PLAIN).processors(prompt_of([1])) == []
    assert DecodingStrategy(**PLAIN | {"min_new_tokens": 9}).processors(prompt_of([1], end_id=None)) == []
    assert sampling_processors(1.0, 0, 1.0) == []


def test_temperature_is_applied_before_top_p() -> None:
    prompt, ids = prompt_of([0]), torch.tensor([[0]])

    assert possible(process(sampling_processors(0.1, 0, 0.9), ids, PROBABILITIES, prompt)) == {1}
    assert possible(process(sampling_processors(10.0, 0, 0.9), ids, PROBABILITIES, prompt)) == {0, 1, 2, 3}


def test_keep_is_a_minimum_for_top_k_and_top_p() -> None:
    scores = torch.tensor([[0.0, 9.0, 1.0]])
    assert possible(process(sampling_processors(1, 1, 0.1, 2), torch.tensor([[0]]), scores, prompt_of([0]))) == {1, 2}


def test_processors_match_transformers() -> None:
    from transformers.generation import logits_process as theirs

    generator = torch.Generator().manual_seed(0)
    for length in range(2, 8):
        ids = torch.randint(0, 8, (4, length), generator=generator)
        scores = 3 * torch.randn(4, 30, generator=generator)
        pairs = [
            (penalize_repetition(1.7), theirs.RepetitionPenaltyLogitsProcessor(1.7)),
            *((ban_repeated_ngrams(size), theirs.NoRepeatNGramLogitsProcessor(size)) for size in (1, 2, 3)),
            (ban_token_before(0, 6), theirs.MinLengthLogitsProcessor(6, torch.tensor([0]))),
            *((keep_top_k(k), theirs.TopKLogitsWarper(k)) for k in (1, 7, 99)),
            *(
                (keep_top_p(p, keep), theirs.TopPLogitsWarper(p, min_tokens_to_keep=keep))
                for p in (0.2, 0.9)
                for keep in (1, 2)
            ),
        ]
        for ours, other in pairs:
            torch.testing.assert_close(ours(ids, scores), other(ids, scores.clone()), rtol=1e-6, atol=0)
