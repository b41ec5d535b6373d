from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.optimization import get_inverse_sqrt_schedule

from tests.support.scheduler_reference import (
    RUNS,
    check_equal,
    check_never_rises,
    check_warmup,
    reference_factors,
    runs,
)
from trainer.errors import ConfigError
from trainer.scheduler.inverse_sqrt import inverse_sqrt


def test_matches_transformers():
    for warmup_steps, total_steps in RUNS:
        for timescale in (None, 1, 30, 10_000):
            theirs = reference_factors(get_inverse_sqrt_schedule, num_warmup_steps=warmup_steps, timescale=timescale)
            check_equal(partial(inverse_sqrt, warmup_steps=warmup_steps, timescale=timescale), theirs, total_steps)


@settings(max_examples=40)
@given(run=runs(), timescale=st.none() | st.integers(1, 10_000))
def test_rises_then_decays(run, timescale):
    warmup_steps, total_steps = run
    factor = partial(inverse_sqrt, warmup_steps=warmup_steps, timescale=timescale)
    check_warmup(factor, warmup_steps)
    check_never_rises(factor, warmup_steps, total_steps + 3)


@given(warmup_steps=st.integers(0, 400), timescale=st.integers(1, 10_000))
def test_factor_after_the_timescale_is_one_over_the_root_of_two(warmup_steps, timescale):
    factor = inverse_sqrt(warmup_steps + timescale, warmup_steps=warmup_steps, timescale=timescale)
    assert factor == pytest.approx(2**-0.5, rel=1e-15)


@pytest.mark.parametrize("timescale", [0, -5])
def test_timescale_out_of_range_raises(timescale):
    with pytest.raises(ConfigError, match=r"^timescale: must be at least 1, got "):
        inverse_sqrt(0, warmup_steps=3, timescale=timescale)
