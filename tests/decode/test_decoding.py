"""What all strategies share: a text ends where no token is possible any more."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from tests.support.language_models import BEAMS, DRAWN, PLAIN, Case, check, models_of_table, prompt_of
from trainer.decode.beam import Beam
from trainer.decode.beam_sample import BeamSample
from trainer.decode.decoding import Decoding
from trainer.decode.greedy import Greedy
from trainer.decode.reading import CachedReader
from trainer.decode.sample import Sample

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


@torch.inference_mode()
@pytest.mark.parametrize(("strategy", "settings"), STRATEGIES)
@pytest.mark.parametrize(("prompt", "rest"), [([1, 2, 0, 3, 4, 5], ()), ([1, 2, 3], (4, 5))])
def test_a_text_ends_where_no_token_is_possible(
    prompt: list[int], rest: tuple[int, ...], strategy: Any, settings: dict[str, Any]
) -> None:
    """Each token occurs once, and the end-of-text token waits."""
    decode: Decoding = strategy(**settings | {"no_repeat_ngram": 1, "min_new_tokens": 9})
    found = decode(CachedReader(models(6)[1]), prompt_of(prompt))  # type: ignore[operator]

    assert len(found) == settings.get("num_return", 1)
    for each in found:
        assert (tuple(sorted(each.ids)), each.ended) == (rest, "exhausted")
        assert (each.score is None) == (settings.get("num_beams", 1) == 1)


@torch.inference_mode()
def test_the_other_texts_go_on() -> None:
    _, ours = models(4)
    limits = {"no_repeat_ngram": 2, "min_new_tokens": 30, "max_new_tokens": 30}
    found = Sample(**PLAIN | DRAWN | limits | {"num_return": 20})(CachedReader(ours), prompt_of([2]))

    assert len({len(each.ids) for each in found}) > 2
    for each in found:
        text = (2, *each.ids)
        pairs = [*pairwise(text)]
        assert len(pairs) == len({*pairs})
        assert {after for before, after in pairs if before == text[-1]} == {1, 2, 3}
        assert each.ended == "exhausted"


@torch.inference_mode()
def test_beams_that_no_token_can_follow_are_given_up_as_transformers_does() -> None:
    limits = {"no_repeat_ngram": 1, "length_penalty": 2.0, "num_beams": 4, "num_return": 4}
    for seed in range(6):
        pair, prompt = models(6, seed), prompt_of([2, 1])
        settings = PLAIN | BEAMS | limits | {"min_new_tokens": seed % 4}
        found = Beam(**settings)(CachedReader(pair[1]), prompt)
        check(Case(*pair, prompt, settings), found)
        assert {each.ended for each in found} == {"end"}
