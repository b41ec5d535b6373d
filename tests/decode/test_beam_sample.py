"""Beam sampling: compared with transformers for the same seed."""

import pytest
import torch

from tests.support.language_models import BEAMS, DRAWN, PLAIN, cases, check, models, prompt_of
from trainer.decode.beam_sample import BeamSample
from trainer.decode.kv_cache import CachedSession
from trainer.decode.sample import Sample


@torch.inference_mode()
@pytest.mark.parametrize("count", [24, pytest.param(400, marks=pytest.mark.slow)])
def test_matches_transformers_with_the_same_seed(count: int) -> None:
    for case in cases(count, beams=True, sampled=True):
        check(case, BeamSample(**case.settings)(CachedSession(case.ours), case.prompt))


@torch.inference_mode()
def test_seed_determines_the_text_and_one_beam_is_sampling() -> None:
    _, ours = models(0)
    settings = PLAIN | DRAWN | BEAMS | {"temperature": 5.0}
    first, again, other = (
        BeamSample(**settings | {"seed": seed})(CachedSession(ours), prompt_of([3, 5])) for seed in (4, 4, 5)
    )
    single = BeamSample(**settings | {"num_beams": 1})(CachedSession(ours), prompt_of([3, 5]))

    assert first == again
    assert first != other
    assert single == Sample(**PLAIN | DRAWN | {"num_return": 1, "temperature": 5.0})(
        CachedSession(ours), prompt_of([3, 5])
    )
