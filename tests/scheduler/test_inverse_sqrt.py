from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.optimization import get_inverse_sqrt_schedule

from tests.support.scheduler_reference import check_never_rises, check_warmup, every_run, factors, runs
from trainer.errors import ConfigError
from trainer.scheduler.inverse_sqrt import inverse_sqrt


@every_run
@pytest.mark.parametrize("timescale", [None, 1, 30, 10_000])
def test_equals_transformers(warmup_steps, total_steps, timescale):
    theirs = factors(get_inverse_sqrt_schedule, num_warmup_steps=warmup_steps, timescale=timescale)
    for step in range(total_steps + 4):
        assert inverse_sqrt(step, warmup_steps=warmup_steps, timescale=timescale) == theirs(step)


@given(run=runs(), timescale=st.none() | st.integers(1, 10_000))
def test_shape(run, timescale):
    warmup_steps, total_steps = run
    factor = partial(inverse_sqrt, warmup_steps=warmup_steps, timescale=timescale)
    check_warmup(factor, warmup_steps)
    check_never_rises(factor, warmup_steps, total_steps + 3)


@given(warmup_steps=st.integers(0, 400), timescale=st.integers(1, 10_000))
def test_after_the_timescale_the_factor_is_one_over_the_root_of_two(warmup_steps, timescale):
    factor = inverse_sqrt(warmup_steps + timescale, warmup_steps=warmup_steps, timescale=timescale)
    assert factor == pytest.approx(2**-0.5, rel=1e-15)


@pytest.mark.parametrize("timescale", [0, -5])
def test_timescale_out_of_range(timescale):
    with pytest.raises(ConfigError, match=r"^timescale: must be at least 1, got "):
        inverse_sqrt(0, warmup_steps=3, timescale=timescale)
