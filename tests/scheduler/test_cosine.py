from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.optimization import get_cosine_schedule_with_warmup

from tests.support.scheduler_reference import check_never_rises, check_warmup, every_run, factors, runs
from trainer.errors import ConfigError
from trainer.scheduler.cosine import cosine


@every_run
@pytest.mark.parametrize("num_cycles", [0.25, 0.5, 1.0, 3])
def test_equals_transformers(warmup_steps, total_steps, num_cycles):
    theirs = factors(
        get_cosine_schedule_with_warmup,
        num_warmup_steps=warmup_steps,
        num_training_steps=total_steps,
        num_cycles=num_cycles,
    )
    for step in range(total_steps + 4):
        ours = cosine(step, warmup_steps=warmup_steps, total_steps=total_steps, num_cycles=num_cycles)
        assert ours == theirs(step)


@given(run=runs(), num_cycles=st.floats(0.01, 0.5))
def test_half_a_wave_only_falls(run, num_cycles):
    warmup_steps, total_steps = run
    factor = partial(cosine, warmup_steps=warmup_steps, total_steps=total_steps, num_cycles=num_cycles)
    check_warmup(factor, warmup_steps)
    check_never_rises(factor, warmup_steps, total_steps)


@given(run=runs(), num_cycles=st.floats(0.01, 20))
def test_many_waves_stay_in_range(run, num_cycles):
    warmup_steps, total_steps = run
    for step in range(total_steps + 4):
        assert 0.0 <= cosine(step, warmup_steps=warmup_steps, total_steps=total_steps, num_cycles=num_cycles) <= 1.0


@pytest.mark.parametrize("num_cycles", [0.0, -1.0, float("nan")])
def test_num_cycles_out_of_range(num_cycles):
    with pytest.raises(ConfigError, match=r"^num_cycles: must be finite and above 0, got "):
        cosine(0, warmup_steps=0, total_steps=10, num_cycles=num_cycles)
