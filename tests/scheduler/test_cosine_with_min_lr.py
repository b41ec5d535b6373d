from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup

from tests.support.scheduler_reference import (
    RUNS,
    check_equal,
    check_never_rises,
    check_warmup,
    reference_factors,
    runs,
)
from trainer.errors import ConfigError
from trainer.scheduler.cosine_with_min_lr import cosine_with_min_lr


def test_matches_transformers():
    for warmup_steps, total_steps in RUNS:
        for num_cycles, min_factor in [(0.25, 0.1), (0.5, 0.0), (0.5, 1.0), (3, 0.1)]:
            theirs = reference_factors(
                get_cosine_with_min_lr_schedule_with_warmup,
                num_warmup_steps=warmup_steps,
                num_training_steps=total_steps,
                num_cycles=num_cycles,
                min_lr_rate=min_factor,
            )
            arguments = {"warmup_steps": warmup_steps, "total_steps": total_steps, "min_factor": min_factor}
            check_equal(partial(cosine_with_min_lr, num_cycles=num_cycles, **arguments), theirs, total_steps)


@settings(max_examples=40)
@given(run=runs(), num_cycles=st.floats(0.01, 0.5), min_factor=st.floats(0, 1))
def test_half_a_wave_decays_to_the_minimum(run, num_cycles, min_factor):
    warmup_steps, total_steps = run
    arguments = {"warmup_steps": warmup_steps, "total_steps": total_steps, "min_factor": min_factor}
    factor = partial(cosine_with_min_lr, num_cycles=num_cycles, **arguments)
    check_warmup(factor, warmup_steps)
    check_never_rises(factor, warmup_steps, total_steps)
    assert cosine_with_min_lr(total_steps, num_cycles=0.5, **arguments) == pytest.approx(min_factor, abs=1e-15)


def test_values_out_of_range_are_reported_together():
    with pytest.raises(ConfigError) as error:
        cosine_with_min_lr(0, warmup_steps=0, total_steps=10, num_cycles=0.0, min_factor=1.5)
    assert [message.split(":")[0] for message in error.value.messages] == ["num_cycles", "min_factor"]
