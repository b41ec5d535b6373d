"""Readers: what is kept gives what reading everything again gives."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.support.decoders import decoder, tokens
from tests.support.language_models import BEAMS, DRAWN, PLAIN, models, prompt_of
from trainer.decode.beam import Beam
from trainer.decode.beam_sample import BeamSample
from trainer.decode.greedy import Greedy
from trainer.decode.reading import CachedReader, Reader, WholeReader, open_reader
from trainer.decode.sample import Sample

WAYS: list[tuple[Any, dict[str, Any]]] = [
    (Greedy, PLAIN),
    (Beam, PLAIN | BEAMS),
    (Sample, PLAIN | DRAWN | {"num_return": 3}),
    (BeamSample, PLAIN | DRAWN | BEAMS),
]


def both(name: str) -> tuple[Reader, Reader]:
    model = decoder().eval() if name == "decoder" else models(1)[1]
    return CachedReader(model), WholeReader(model)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["decoder", "gpt2"])
def test_scores_are_those_of_reading_everything_again(name: str) -> None:
    cached, whole = both(name)
    ids = tokens(1, 9) % 40
    torch.testing.assert_close(cached.read(ids), whole.read(ids), rtol=0, atol=1e-5)
    rows = torch.tensor([0, 0, 0])
    for step, order in enumerate([rows, torch.tensor([2, 0, 1]), torch.tensor([1, 1, 0, 2])]):
        for reader in (cached, whole):
            reader.keep(order)
        new = tokens(len(order), 1 + step, seed=step) % 40
        torch.testing.assert_close(cached.read(new), whole.read(new), rtol=0, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize(("way", "settings"), WAYS)
@pytest.mark.parametrize("name", ["decoder", "gpt2"])
def test_the_tokens_are_those_of_reading_everything_again(name: str, way: Any, settings: dict[str, Any]) -> None:
    for seed in range(4):
        prompt = prompt_of((tokens(1 + 4 * seed, seed=seed) % 39 + 1).tolist())
        cached, whole = (way(**settings)(reader, prompt) for reader in both(name))
        assert [each.ids for each in cached] == [each.ids for each in whole]


@torch.inference_mode()
def test_scores_are_the_losss_own_where_it_has_parameters() -> None:
    from trainer.loss.adaptive_softmax import AdaptiveSoftmax
    from trainer.targets import with_loss_head

    torch.manual_seed(0)
    model = decoder(num_outputs=32, tie_embeddings=False)
    loss = AdaptiveSoftmax(32, [10], 2.0, head_bias=False, ignore_index=-100, num_outputs=50, class_counts=[1] * 50)
    whole = with_loss_head(model, loss).eval()
    ids = tokens(1, 7)

    torch.testing.assert_close(CachedReader(whole).read(ids), WholeReader(whole).read(ids), rtol=0, atol=1e-5)
    assert CachedReader(whole).read(ids).shape == (1, 50)


def test_a_model_without_a_cache_is_read_whole() -> None:
    assert isinstance(open_reader(decoder()), CachedReader)
    assert isinstance(open_reader(models(0)[1]), CachedReader)
    assert isinstance(open_reader(decoder(num_outputs=5, output_level="sample")), WholeReader)
    assert isinstance(open_reader(nn.Linear(2, 2)), WholeReader)
