"""Behavior that all strategies share: texts end if no token is possible, and scores must be numbers."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.language_models import BEAMS, DRAWN, PLAIN, Case, check, models_of_table, prompt_of
from trainer.decode.beam import Beam
from trainer.decode.beam_sample import BeamSample
from trainer.decode.greedy import Greedy
from trainer.decode.kv_cache import CachedSession
from trainer.decode.sample import Sample
from trainer.errors import CheckpointError

STRATEGIES: list[tuple[Any, dict[str, Any]]] = [
    (Greedy, PLAIN),
    (Beam, PLAIN | BEAMS),
    (Sample, PLAIN | DRAWN | {"num_return": 3}),
    (BeamSample, PLAIN | DRAWN | BEAMS),
    (Beam, PLAIN | BEAMS | {"num_beams": 1}),
    (BeamSample, PLAIN | DRAWN | BEAMS | {"num_beams": 1}),
]


def models(size: int, seed: int = 0) -> tuple[Any, Any]:
    torch.manual_seed(seed)
    return models_of_table((torch.rand(size, size) + 0.1).softmax(-1))


class BadSession(CachedSession):
    """A session whose scores contain `value` from the second step on."""

    def __init__(self, model: Any, value: float) -> None:
        super().__init__(model)
        self.value = value
        self.steps = 0

    def feed(self, input_ids: Tensor) -> Tensor:
        scores = super().feed(input_ids)
        self.steps += 1
        if self.steps > 1:
            scores[:, 2] = self.value
        return scores


@torch.inference_mode()
@pytest.mark.parametrize(("strategy", "settings"), STRATEGIES)
def test_text_ends_if_no_token_is_possible(strategy: Any, settings: dict[str, Any]) -> None:
    """Each token may occur once, and the end-of-text token is banned."""
    _, ours = models(6)
    decode = strategy(**settings | {"no_repeat_ngram": 1, "min_new_tokens": 9})
    for prompt, rest in (([1, 2, 0, 3, 4, 5], ()), ([1, 2, 3], (4, 5))):
        texts = decode(CachedSession(ours), prompt_of(prompt))

        assert len(texts) == settings.get("num_return", 1)
        for text in texts:
            assert (tuple(sorted(text.ids)), text.ended) == (rest, "exhausted")
            assert (text.score is None) == (settings.get("num_beams", 1) == 1)


@torch.inference_mode()
@pytest.mark.parametrize(("strategy", "settings"), STRATEGIES)
def test_scores_that_are_not_numbers_are_one_user_error(strategy: Any, settings: dict[str, Any]) -> None:
    _, ours = models(6)
    decode = strategy(**settings | {"min_new_tokens": 9})
    for value in (torch.nan, torch.inf):
        with pytest.raises(CheckpointError, match="new token 2 contain NaN or infinity"):
            decode(BadSession(ours, value), prompt_of([1, 2]))


@torch.inference_mode()
def test_other_texts_continue_after_one_has_ended() -> None:
    _, ours = models(4)
    limits = {"no_repeat_ngram": 2, "min_new_tokens": 30, "max_new_tokens": 30}
    texts = Sample(**PLAIN | DRAWN | limits | {"num_return": 20})(CachedSession(ours), prompt_of([2]))

    assert len({len(text.ids) for text in texts}) > 2
    for text in texts:
        ids = (2, *text.ids)
        pairs = [*pairwise(ids)]
        assert len(pairs) == len({*pairs})
        assert {after for before, after in pairs if before == ids[-1]} == {1, 2, 3}
        assert text.ended == "exhausted"


@torch.inference_mode()
def test_beams_without_possible_tokens_are_dropped_as_in_transformers() -> None:
    limits = {"no_repeat_ngram": 1, "length_penalty": 2.0, "num_beams": 4, "num_return": 4}
    for seed in range(6):
        pair, prompt = models(6, seed), prompt_of([2, 1])
        settings = PLAIN | BEAMS | limits | {"min_new_tokens": seed % 4}
        texts = Beam(**settings)(CachedSession(pair[1]), prompt)
        check(Case(*pair, prompt, settings), texts)
        assert {text.ended for text in texts} == {"end"}
