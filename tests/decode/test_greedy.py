"""Greedy decoding: compared with transformers, and where texts end."""

import pytest
import torch

from tests.support.language_models import END, MAX_LENGTH, PLAIN, cases, check, models, prompt_of
from trainer.decode.greedy import Greedy
from trainer.decode.kv_cache import CachedSession


@torch.inference_mode()
@pytest.mark.parametrize("count", [24, pytest.param(300, marks=pytest.mark.slow)])
def test_matches_transformers(count: int) -> None:
    ended = set()
    for case in cases(count):
        found = Greedy(**case.settings)(CachedSession(case.ours), case.prompt)
        check(case, found)
        ended |= {each.ended for each in found}
    assert {"end", "length"} <= ended


@torch.inference_mode()
def test_stops_at_the_maximum_length_of_the_model() -> None:
    _, ours = models(0)
    prompt = prompt_of([3] * (MAX_LENGTH - 4), end_id=None)
    (found,) = Greedy(**PLAIN)(CachedSession(ours), prompt)

    assert (len(found.ids), found.ended) == (4, "context")


@torch.inference_mode()
def test_stops_at_the_first_token_that_completes_a_stop_string() -> None:
    _, ours = models(1)
    prompt = prompt_of([3, 5], end_id=None)
    (whole,) = Greedy(**PLAIN)(CachedSession(ours), prompt)
    pair = f"{whole.ids[4]} {whole.ids[5]}"
    (found,) = Greedy(**PLAIN | {"stop": ["no such text", pair]})(CachedSession(ours), prompt)

    assert whole.ended == "length"
    assert found.ended == "stop"
    assert pair in " ".join(map(str, found.ids))
    assert pair not in " ".join(map(str, found.ids[:-1]))
    assert whole.ids[: len(found.ids)] == found.ids


@torch.inference_mode()
def test_end_token_and_stop_strings_in_the_prompt_are_ignored() -> None:
    _, ours = models(1)
    prompt = prompt_of([3, END, 5])
    (found,) = Greedy(**PLAIN | {"stop": ["3 0"], "min_new_tokens": 12})(CachedSession(ours), prompt)

    assert (len(found.ids), found.ended) == (12, "length")
