from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.optimization import get_cosine_with_hard_restarts_schedule_with_warmup

from tests.support.scheduler_reference import RUNS, check_never_rises, check_warmup, reference_factors, runs
from trainer.errors import ConfigError
from trainer.scheduler.cosine_with_restarts import cosine_with_restarts


def test_matches_transformers():
    for warmup_steps, total_steps in RUNS:
        for num_cycles in (1, 2, 7):
            reference = reference_factors(
                get_cosine_with_hard_restarts_schedule_with_warmup,
                num_warmup_steps=warmup_steps,
                num_training_steps=total_steps,
                num_cycles=num_cycles,
            )
            ours = partial(
                cosine_with_restarts, warmup_steps=warmup_steps, total_steps=total_steps, num_cycles=num_cycles
            )
            # We take the remainder of integers; transformers takes it of rounded quotients.
            for step in range(total_steps + 4):
                assert ours(step) == pytest.approx(reference(step), abs=1e-14)


@settings(max_examples=40)
@given(run=runs())
def test_one_cycle_rises_then_decays(run):
    warmup_steps, total_steps = run
    factor = partial(cosine_with_restarts, warmup_steps=warmup_steps, total_steps=total_steps, num_cycles=1)
    check_warmup(factor, warmup_steps)
    check_never_rises(factor, warmup_steps, total_steps + 3)
    assert factor(total_steps) == 0.0


@settings(max_examples=30)
@given(warmup_steps=st.integers(0, 20), period=st.integers(1, 20), num_cycles=st.integers(1, 20))
def test_every_cycle_starts_at_one(warmup_steps, period, num_cycles):
    total_steps = warmup_steps + period * num_cycles
    factor = partial(cosine_with_restarts, warmup_steps=warmup_steps, total_steps=total_steps, num_cycles=num_cycles)
    for start in range(warmup_steps, total_steps, period):
        assert factor(start) == 1.0
        check_never_rises(factor, start, start + period - 1)


@pytest.mark.parametrize("num_cycles", [0, -1])
def test_num_cycles_out_of_range_raises(num_cycles):
    with pytest.raises(ConfigError, match=r"^num_cycles: must be "):
        cosine_with_restarts(0, warmup_steps=0, total_steps=10, num_cycles=num_cycles)
