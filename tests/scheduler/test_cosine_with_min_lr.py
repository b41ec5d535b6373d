from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup

from tests.support.scheduler_reference import check_never_rises, check_warmup, every_run, factors, runs
from trainer.errors import ConfigError
from trainer.scheduler.cosine import cosine
from trainer.scheduler.cosine_with_min_lr import cosine_with_min_lr


@every_run
@pytest.mark.parametrize("num_cycles", [0.25, 0.5, 1.0, 3])
@pytest.mark.parametrize("min_factor", [0.0, 0.1, 1.0])
def test_equals_transformers(warmup_steps, total_steps, num_cycles, min_factor):
    theirs = factors(
        get_cosine_with_min_lr_schedule_with_warmup,
        num_warmup_steps=warmup_steps,
        num_training_steps=total_steps,
        num_cycles=num_cycles,
        min_lr_rate=min_factor,
    )
    run = {"warmup_steps": warmup_steps, "total_steps": total_steps}
    for step in range(total_steps + 4):
        assert cosine_with_min_lr(step, **run, num_cycles=num_cycles, min_factor=min_factor) == theirs(step)


@given(run=runs(), num_cycles=st.floats(0.01, 0.5), min_factor=st.floats(0, 1))
def test_half_a_wave_falls_to_the_floor(run, num_cycles, min_factor):
    warmup_steps, total_steps = run
    arguments = {"warmup_steps": warmup_steps, "total_steps": total_steps, "min_factor": min_factor}
    factor = partial(cosine_with_min_lr, num_cycles=num_cycles, **arguments)
    check_warmup(factor, warmup_steps)
    check_never_rises(factor, warmup_steps, total_steps)
    assert cosine_with_min_lr(total_steps, num_cycles=0.5, **arguments) == pytest.approx(min_factor, abs=1e-15)


@given(run=runs(), num_cycles=st.floats(0.01, 20))
def test_without_a_floor_it_is_the_cosine(run, num_cycles):
    warmup_steps, total_steps = run
    arguments = {"warmup_steps": warmup_steps, "total_steps": total_steps, "num_cycles": num_cycles}
    for step in range(total_steps + 4):
        assert cosine_with_min_lr(step, **arguments, min_factor=0.0) == cosine(step, **arguments)


def test_values_out_of_range():
    with pytest.raises(ConfigError) as caught:
        cosine_with_min_lr(0, warmup_steps=0, total_steps=10, num_cycles=0.0, min_factor=1.5)
    assert caught.value.messages == (
        "num_cycles: must be finite and above 0, got 0.0.",
        "min_factor: must be between 0 and 1, got 1.5.",
    )
