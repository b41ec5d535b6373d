from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup_lr_rate

from tests.support.scheduler_reference import RUNS, check_equal, check_never_rises, reference_factors, runs
from trainer.errors import ConfigError
from trainer.scheduler.cosine_warmup_with_min_lr import cosine_warmup_with_min_lr

SETTINGS = [(0.25, 0.1, None), (0.5, 0.0, 0.0), (0.5, 0.1, 0.3), (3, 0.1, 1.0), (0.5, 1.0, None)]


def test_matches_transformers():
    for warmup_steps, total_steps in RUNS:
        for num_cycles, min_factor, warmup_factor in SETTINGS:
            theirs = reference_factors(
                get_cosine_with_min_lr_schedule_with_warmup_lr_rate,
                num_warmup_steps=warmup_steps,
                num_training_steps=total_steps,
                num_cycles=num_cycles,
                min_lr_rate=min_factor,
                warmup_lr_rate=warmup_factor,
            )
            ours = partial(
                cosine_warmup_with_min_lr,
                warmup_steps=warmup_steps,
                total_steps=total_steps,
                num_cycles=num_cycles,
                min_factor=min_factor,
                warmup_factor=warmup_factor,
            )
            check_equal(ours, theirs, total_steps)


@settings(max_examples=40)
@given(run=runs(), min_factor=st.floats(0, 1), warmup_factor=st.none() | st.floats(0, 1))
def test_last_steps_have_the_peak_and_the_minimum(run, min_factor, warmup_factor):
    warmup_steps, total_steps = run
    factor = partial(
        cosine_warmup_with_min_lr,
        warmup_steps=warmup_steps,
        total_steps=total_steps,
        num_cycles=0.5,
        min_factor=min_factor,
        warmup_factor=warmup_factor,
    )
    start = 1 / warmup_steps if warmup_factor is None and warmup_steps else warmup_factor
    for step in range(warmup_steps):
        rise = step / max(1, warmup_steps - 1)
        assert factor(step) == pytest.approx(start + (1 - start) * rise, abs=1e-15)
    check_never_rises(factor, warmup_steps, total_steps - 1)
    assert factor(total_steps - 1) == pytest.approx(min_factor, abs=1e-15)


def test_values_out_of_range_are_reported_together():
    arguments = {"warmup_steps": 0, "total_steps": 10, "num_cycles": -1, "min_factor": -0.5, "warmup_factor": 2.0}
    with pytest.raises(ConfigError) as error:
        cosine_warmup_with_min_lr(0, **arguments)
    keys = [message.split(":")[0] for message in error.value.messages]
    assert keys == ["num_cycles", "min_factor", "warmup_factor"]
