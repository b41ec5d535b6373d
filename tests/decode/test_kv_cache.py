"""Decoding sessions: the cache gives the scores of feeding the whole sequence again."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.support.decoders import decoder, tokens
from tests.support.language_models import BEAMS, DRAWN, PLAIN, models, prompt_of
from trainer.decode.beam import Beam
from trainer.decode.beam_sample import BeamSample
from trainer.decode.greedy import Greedy
from trainer.decode.kv_cache import CachedSession, DecodingSession, UncachedSession, open_session
from trainer.decode.sample import Sample

STRATEGIES: list[tuple[Any, dict[str, Any]]] = [
    (Greedy, PLAIN),
    (Beam, PLAIN | BEAMS),
    (Sample, PLAIN | DRAWN | {"num_return": 3}),
    (BeamSample, PLAIN | DRAWN | BEAMS),
]


def both(name: str) -> tuple[DecodingSession, DecodingSession]:
    model = decoder().eval() if name == "decoder" else models(1)[1]
    return CachedSession(model), UncachedSession(model)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["decoder", "gpt2"])
def test_cached_scores_match_uncached_scores(name: str) -> None:
    cached, uncached = both(name)
    ids = tokens(1, 9) % 40
    torch.testing.assert_close(cached.feed(ids), uncached.feed(ids), rtol=0, atol=1e-5)
    for step, rows in enumerate(([0, 0, 0], [2, 0, 1], [1, 1, 0, 2])):
        for session in (cached, uncached):
            session.reorder(torch.tensor(rows))
        new = tokens(len(rows), 1 + step, seed=step) % 40
        torch.testing.assert_close(cached.feed(new), uncached.feed(new), rtol=0, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["decoder", "gpt2"])
def test_strategies_choose_the_same_tokens_with_and_without_cache(name: str) -> None:
    for seed, (strategy, settings) in enumerate(STRATEGIES):
        prompt = prompt_of((tokens(1 + 4 * seed, seed=seed) % 39 + 1).tolist())
        cached, uncached = (strategy(**settings)(session, prompt) for session in both(name))
        assert [text.ids for text in cached] == [text.ids for text in uncached]


@torch.inference_mode()
def test_a_loss_with_a_head_computes_the_scores() -> None:
    from trainer.loss.adaptive_softmax import AdaptiveSoftmax
    from trainer.targets import with_loss_head

    torch.manual_seed(0)
    model = decoder(num_outputs=32, tie_embeddings=False)
    loss = AdaptiveSoftmax(32, [10], 2.0, head_bias=False, ignore_index=-100, num_outputs=50, class_counts=[1] * 50)
    whole = with_loss_head(model, loss).eval()
    ids = tokens(1, 7)
    scores = CachedSession(whole).feed(ids)

    assert scores.shape == (1, 50)
    torch.testing.assert_close(scores, UncachedSession(whole).feed(ids), rtol=0, atol=1e-5)


def test_open_session_uses_a_cache_if_the_model_has_one() -> None:
    assert isinstance(open_session(decoder()), CachedSession)
    assert isinstance(open_session(models(0)[1]), CachedSession)
    assert isinstance(open_session(decoder(num_outputs=5, output_level="sample")), UncachedSession)
    assert isinstance(open_session(nn.Linear(2, 2)), UncachedSession)
