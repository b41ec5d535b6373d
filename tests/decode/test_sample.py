"""Sampling: compared with transformers for the same seed, and its distribution."""

from collections import Counter

import pytest
import torch

from tests.support.language_models import DRAWN, PLAIN, cases, check, models, prompt_of
from trainer.decode.greedy import Greedy
from trainer.decode.kv_cache import CachedSession
from trainer.decode.sample import Sample


@torch.inference_mode()
@pytest.mark.parametrize("count", [24, pytest.param(300, marks=pytest.mark.slow)])
def test_matches_transformers_with_the_same_seed(count: int) -> None:
    for case in cases(count, sampled=True):
        check(case, Sample(**case.settings)(CachedSession(case.ours), case.prompt))


@torch.inference_mode()
def test_global_generator_is_untouched() -> None:
    _, ours = models(0)
    settings = PLAIN | DRAWN | {"num_return": 2}
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = Sample(**settings)(CachedSession(ours), prompt_of([3, 5]))
    torch.manual_seed(2)
    again = Sample(**settings)(CachedSession(ours), prompt_of([3, 5]))
    other = Sample(**settings | {"seed": 1})(CachedSession(ours), prompt_of([3, 5]))

    assert first == again
    assert first != other
    torch.manual_seed(1)
    assert torch.equal(before, torch.get_rng_state())


@torch.inference_mode()
def test_top_k_of_one_is_greedy() -> None:
    _, ours = models(2)
    drawn = Sample(**PLAIN | DRAWN | {"top_k": 1, "num_return": 2})(CachedSession(ours), prompt_of([3, 5]))

    assert drawn == Greedy(**PLAIN)(CachedSession(ours), prompt_of([3, 5])) * 2


@torch.inference_mode()
def test_token_frequencies_match_their_probabilities() -> None:
    _, ours = models(0)
    prompt, count = prompt_of([3, 5]), 4_000
    settings = PLAIN | DRAWN | {"max_new_tokens": 1, "num_return": count, "temperature": 0.8, "top_k": 4}
    drawn = Counter(each.ids[0] for each in Sample(**settings)(CachedSession(ours), prompt))
    best = (CachedSession(ours).feed(prompt.ids[None])[0] / 0.8).topk(4)

    assert set(drawn) == set(best.indices.tolist())
    for token, probability in zip(best.indices.tolist(), best.values.softmax(0).tolist(), strict=True):
        deviation = (probability * (1 - probability) / count) ** 0.5
        assert abs(drawn[token] / count - probability) < 5 * deviation
