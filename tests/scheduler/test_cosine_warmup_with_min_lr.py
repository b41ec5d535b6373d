from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup_lr_rate

from tests.support.scheduler_reference import check_never_rises, every_run, factors, runs
from trainer.errors import ConfigError
from trainer.scheduler.cosine_warmup_with_min_lr import cosine_warmup_with_min_lr


@every_run
@pytest.mark.parametrize("num_cycles", [0.25, 0.5, 3])
@pytest.mark.parametrize("min_factor", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("warmup_factor", [None, 0.0, 0.3, 1.0])
def test_equals_transformers(warmup_steps, total_steps, num_cycles, min_factor, warmup_factor):
    theirs = factors(
        get_cosine_with_min_lr_schedule_with_warmup_lr_rate,
        num_warmup_steps=warmup_steps,
        num_training_steps=total_steps,
        num_cycles=num_cycles,
        min_lr_rate=min_factor,
        warmup_lr_rate=warmup_factor,
    )
    factor = partial(
        cosine_warmup_with_min_lr,
        warmup_steps=warmup_steps,
        total_steps=total_steps,
        num_cycles=num_cycles,
        min_factor=min_factor,
        warmup_factor=warmup_factor,
    )
    for step in range(total_steps + 4):
        assert factor(step) == theirs(step)


@given(run=runs(), min_factor=st.floats(0, 1), warmup_factor=st.none() | st.floats(0, 1))
def test_the_last_steps_have_the_peak_and_the_floor(run, min_factor, warmup_factor):
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


def test_values_out_of_range():
    arguments = {"warmup_steps": 0, "total_steps": 10, "num_cycles": -1, "min_factor": -0.5, "warmup_factor": 2.0}
    with pytest.raises(ConfigError) as caught:
        cosine_warmup_with_min_lr(0, **arguments)
    assert caught.value.messages == (
        "num_cycles: must be finite and above 0, got -1.",
        "min_factor: must be between 0 and 1, got -0.5.",
        "warmup_factor: must be between 0 and 1, got 2.0.",
    )
