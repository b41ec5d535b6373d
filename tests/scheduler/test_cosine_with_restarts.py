from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.optimization import get_cosine_with_hard_restarts_schedule_with_warmup

from tests.support.scheduler_reference import check_never_rises, check_warmup, every_run, factors, runs
from trainer.errors import ConfigError
from trainer.scheduler.cosine_with_restarts import cosine_with_restarts


@every_run
@pytest.mark.parametrize("num_cycles", [1, 2, 3, 7])
def test_equals_transformers(warmup_steps, total_steps, num_cycles):
    theirs = factors(
        get_cosine_with_hard_restarts_schedule_with_warmup,
        num_warmup_steps=warmup_steps,
        num_training_steps=total_steps,
        num_cycles=num_cycles,
    )
    for step in range(total_steps + 4):
        ours = cosine_with_restarts(step, warmup_steps=warmup_steps, total_steps=total_steps, num_cycles=num_cycles)
        # The remainder is taken of integers here, of rounded quotients there.
        assert ours == pytest.approx(theirs(step), abs=1e-14)


@given(run=runs())
def test_one_fall_is_the_warmup_then_a_fall(run):
    warmup_steps, total_steps = run
    factor = partial(cosine_with_restarts, warmup_steps=warmup_steps, total_steps=total_steps, num_cycles=1)
    check_warmup(factor, warmup_steps)
    check_never_rises(factor, warmup_steps, total_steps + 3)
    assert factor(total_steps) == 0.0


@given(warmup_steps=st.integers(0, 50), period=st.integers(1, 50), num_cycles=st.integers(1, 60))
def test_every_restart_is_at_its_step(warmup_steps, period, num_cycles):
    total_steps = warmup_steps + period * num_cycles
    factor = partial(cosine_with_restarts, warmup_steps=warmup_steps, total_steps=total_steps, num_cycles=num_cycles)
    for start in range(warmup_steps, total_steps, period):
        assert factor(start) == 1.0
        check_never_rises(factor, start, start + period - 1)


@pytest.mark.parametrize("num_cycles", [0, -1])
def test_num_cycles_out_of_range(num_cycles):
    with pytest.raises(ConfigError, match=r"^num_cycles: must be finite and above 0, got "):
        cosine_with_restarts(0, warmup_steps=0, total_steps=10, num_cycles=num_cycles)
