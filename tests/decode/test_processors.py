"""Processors of scores: by hand, and against those of transformers."""

from math import inf, log

import pytest
import torch
from torch import Tensor

from tests.support.language_models import PLAIN, prompt_of
from trainer.decode.decoding import Decoding
from trainer.decode.processors import (
    ban_repeated_ngrams,
    ban_token_before,
    keep_top_k,
    keep_top_p,
    narrowing,
    penalize_repetition,
    processed,
)


def one_hot(*tokens: int, size: int = 5) -> Tensor:
    """Where a row of scores has these tokens, boolean (size,)."""
    return torch.nn.functional.one_hot(torch.tensor(tokens), size).bool().any(dim=0)


def banned(scores: Tensor) -> list[Tensor]:
    return list(scores == -inf)


class TestByHand:
    def test_a_repeated_token_loses_whatever_its_sign(self) -> None:
        scores = torch.tensor([[2.0, -2.0, 1.0], [2.0, -2.0, 1.0]])
        changed = penalize_repetition(2.0)(torch.tensor([[0, 1, 1], [2, 2, 2]]), scores)

        assert changed.tolist() == [[1.0, -4.0, 1.0], [2.0, -2.0, 0.5]]
        assert scores.tolist() == [[2.0, -2.0, 1.0]] * 2

    @pytest.mark.parametrize(
        ("size", "ids", "tokens"),
        [
            (1, [3, 1, 3], (1, 3)),
            (2, [1, 2, 3, 1], (2,)),
            (2, [1, 2, 1, 4, 1], (2, 4)),
            (3, [1, 2, 3, 1, 2], (3,)),
            (3, [1, 1, 1], (1,)),
        ],
    )
    def test_what_would_repeat_a_sequence_is_banned(self, size: int, ids: list[int], tokens: tuple[int, ...]) -> None:
        (found,) = banned(ban_repeated_ngrams(size)(torch.tensor([ids]), torch.zeros(1, 5)))
        assert torch.equal(found, one_hot(*tokens))

    @pytest.mark.parametrize(("size", "ids"), [(2, [1]), (2, [1, 2, 3]), (3, [1, 2]), (4, [1, 2, 1, 2])])
    def test_nothing_is_banned_without_a_sequence_to_repeat(self, size: int, ids: list[int]) -> None:
        scores = torch.zeros(1, 5)
        assert torch.equal(ban_repeated_ngrams(size)(torch.tensor([ids]), scores), scores)

    def test_each_row_bans_its_own(self) -> None:
        first, second = banned(ban_repeated_ngrams(2)(torch.tensor([[1, 2, 1], [3, 3, 3]]), torch.zeros(2, 5)))
        assert torch.equal(first, one_hot(2))
        assert torch.equal(second, one_hot(3))

    def test_the_end_waits(self) -> None:
        process = ban_token_before(4, length=3)
        assert torch.equal(process(torch.tensor([[1, 2]]), torch.zeros(1, 5)) == -inf, one_hot(4)[None])
        assert torch.equal(process(torch.tensor([[1, 2, 3]]), torch.zeros(1, 5)), torch.zeros(1, 5))

    @pytest.mark.parametrize(("k", "tokens"), [(1, (2,)), (2, (2, 0, 3)), (3, (2, 0, 3)), (9, (0, 1, 2, 3))])
    def test_the_best_tokens_and_their_equals_stay(self, k: int, tokens: tuple[int, ...]) -> None:
        (found,) = banned(keep_top_k(k)(torch.tensor([[0]]), torch.tensor([[1.0, 0.0, 3.0, 1.0]])))
        assert torch.equal(~found, one_hot(*tokens, size=4))

    @pytest.mark.parametrize(
        ("p", "keep", "tokens"),
        [(0.5, 1, (1,)), (0.51, 1, (1, 3)), (0.81, 1, (1, 3, 0)), (0.99, 1, (0, 1, 2, 3)), (0.1, 2, (1, 3))],
    )
    def test_the_fewest_tokens_that_are_so_probable_together_stay(
        self, p: float, keep: int, tokens: tuple[int, ...]
    ) -> None:
        scores = torch.tensor([[log(0.15), log(0.5), log(0.05), log(0.3)]])
        (found,) = banned(keep_top_p(p, keep)(torch.tensor([[0]]), scores))
        assert torch.equal(~found, one_hot(*tokens, size=4))

    def test_what_has_no_effect_is_left_out(self) -> None:
        assert Decoding(**PLAIN).processors(prompt_of([1])) == []
        assert Decoding(**PLAIN | {"min_new_tokens": 9}).processors(prompt_of([1], end_id=None)) == []
        assert narrowing(1.0, 0, 1.0) == []

    def test_temperature_comes_before_what_cuts(self) -> None:
        scores = torch.tensor([[log(0.15), log(0.5), log(0.05), log(0.3)]])
        ids = torch.tensor([[0]])
        (sharp,) = banned(processed(narrowing(0.1, 0, 0.9), ids, scores))
        (flat,) = banned(processed(narrowing(10.0, 0, 0.9), ids, scores))

        assert torch.equal(~sharp, one_hot(1, size=4))
        assert not flat.any()

    def test_two_stay_where_two_must(self) -> None:
        scores = torch.tensor([[0.0, 9.0, 1.0]])
        (found,) = banned(processed(narrowing(1, 1, 0.1, 2), torch.tensor([[0]]), scores))
        assert torch.equal(~found, one_hot(1, 2, size=3))


class TestAgainstTransformers:
    @pytest.mark.parametrize("seed", range(10))
    def test_each_gives_the_same_scores(self, seed: int) -> None:
        from transformers.generation import logits_process as theirs

        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, 8, (4, 2 + seed), generator=generator)
        scores = 3 * torch.randn(4, 30, generator=generator)
        end = torch.tensor([0])
        pairs = [
            (penalize_repetition(1.7), theirs.RepetitionPenaltyLogitsProcessor(1.7)),
            *((ban_repeated_ngrams(size), theirs.NoRepeatNGramLogitsProcessor(size)) for size in (1, 2, 3)),
            (ban_token_before(0, 6), theirs.MinLengthLogitsProcessor(6, end)),
            *((keep_top_k(k), theirs.TopKLogitsWarper(k)) for k in (1, 7, 99)),
            *(
                (keep_top_p(p, keep), theirs.TopPLogitsWarper(p, min_tokens_to_keep=keep))
                for p in (0.2, 0.9)
                for keep in (1, 2)
            ),
        ]
        for ours, other in pairs:
            assert torch.equal(ours(ids, scores), other(ids, scores.clone()))
