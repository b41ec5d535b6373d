"""Greedy decoding against transformers', and its limits."""

import pytest
import torch

from tests.support.language_models import END, MAX_LENGTH, PLAIN, cases, check, models, prompt_of
from trainer.decode.greedy import Greedy
from trainer.decode.reading import CachedReader


@torch.inference_mode()
@pytest.mark.parametrize("count", [24, pytest.param(300, marks=pytest.mark.slow)])
def test_gives_the_tokens_of_transformers(count: int) -> None:
    ended = set()
    for case in cases(count):
        found = Greedy(**case.settings)(CachedReader(case.ours), case.prompt)
        check(case, found)
        ended |= {each.ended for each in found}
    assert {"end", "length"} <= ended


@torch.inference_mode()
def test_stops_where_the_model_can_read_no_more() -> None:
    _, ours = models(0)
    prompt = prompt_of([3] * (MAX_LENGTH - 4), end_id=None)
    (found,) = Greedy(**PLAIN)(CachedReader(ours), prompt)

    assert (len(found.ids), found.ended) == (4, "context")


@torch.inference_mode()
def test_stops_at_the_first_token_whose_text_holds_a_stop_string() -> None:
    _, ours = models(1)
    prompt = prompt_of([3, 5], end_id=None)
    (whole,) = Greedy(**PLAIN)(CachedReader(ours), prompt)
    pair = f"{whole.ids[4]} {whole.ids[5]}"
    (found,) = Greedy(**PLAIN | {"stop": ["no such text", pair]})(CachedReader(ours), prompt)

    assert whole.ended == "length"
    assert found.ended == "stop"
    assert pair in " ".join(map(str, found.ids))
    assert pair not in " ".join(map(str, found.ids[:-1]))
    assert whole.ids[: len(found.ids)] == found.ids


@torch.inference_mode()
def test_the_prompt_ends_nothing() -> None:
    _, ours = models(1)
    prompt = prompt_of([3, END, 5])
    (found,) = Greedy(**PLAIN | {"stop": ["3 0"], "min_new_tokens": 12})(CachedReader(ours), prompt)

    assert (len(found.ids), found.ended) == (12, "length")
