from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.optimization import get_cosine_schedule_with_warmup

from tests.support.scheduler_reference import (
    RUNS,
    check_equal,
    check_never_rises,
    check_warmup,
    reference_factors,
    runs,
)
from trainer.errors import ConfigError
from trainer.scheduler.cosine import cosine


def test_matches_transformers():
    for warmup_steps, total_steps in RUNS:
        for num_cycles in (0.25, 0.5, 3):
            theirs = reference_factors(
                get_cosine_schedule_with_warmup,
                num_warmup_steps=warmup_steps,
                num_training_steps=total_steps,
                num_cycles=num_cycles,
            )
            ours = partial(cosine, warmup_steps=warmup_steps, total_steps=total_steps, num_cycles=num_cycles)
            check_equal(ours, theirs, total_steps)


@settings(max_examples=40)
@given(run=runs(), num_cycles=st.floats(0.01, 0.5), many=st.floats(0.5, 20))
def test_half_a_wave_only_decays_and_many_waves_stay_in_range(run, num_cycles, many):
    warmup_steps, total_steps = run
    factor = partial(cosine, warmup_steps=warmup_steps, total_steps=total_steps, num_cycles=num_cycles)
    check_warmup(factor, warmup_steps)
    check_never_rises(factor, warmup_steps, total_steps)
    for step in range(total_steps + 4):
        assert 0.0 <= cosine(step, warmup_steps=warmup_steps, total_steps=total_steps, num_cycles=many) <= 1.0


@pytest.mark.parametrize("num_cycles", [0.0, float("nan")])
def test_num_cycles_out_of_range_raises(num_cycles):
    with pytest.raises(ConfigError, match=r"^num_cycles: must be "):
        cosine(0, warmup_steps=0, total_steps=10, num_cycles=num_cycles)
