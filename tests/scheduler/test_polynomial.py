from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.optimization import get_polynomial_decay_schedule_with_warmup

from tests.support.scheduler_reference import BASE_LR, check_never_rises, check_warmup, every_run, factors, runs
from trainer.errors import ConfigError
from trainer.scheduler.polynomial import polynomial


@every_run
@pytest.mark.parametrize("end_factor", [0.0, 1e-7, 0.1])
@pytest.mark.parametrize("power", [0.5, 1.0, 2.0, 3])
def test_equals_transformers(warmup_steps, total_steps, power, end_factor):
    theirs = factors(
        get_polynomial_decay_schedule_with_warmup,
        num_warmup_steps=warmup_steps,
        num_training_steps=total_steps,
        lr_end=end_factor * BASE_LR,
        power=power,
    )
    for step in range(total_steps + 4):
        ours = polynomial(step, warmup_steps=warmup_steps, total_steps=total_steps, power=power, end_factor=end_factor)
        if step == warmup_steps == total_steps:
            # Nothing is left to fall in: theirs divides by zero.
            assert ours == end_factor
        else:
            assert ours == theirs(step)


@given(run=runs(), power=st.floats(0.1, 10), end_factor=st.floats(0, 1))
def test_shape(run, power, end_factor):
    warmup_steps, total_steps = run
    factor = partial(polynomial, warmup_steps=warmup_steps, total_steps=total_steps, power=power, end_factor=end_factor)
    check_warmup(factor, warmup_steps)
    check_never_rises(factor, warmup_steps, total_steps + 3)
    assert factor(total_steps) == end_factor


@pytest.mark.parametrize(
    ("name", "value"), [("power", 0.0), ("power", -1.0), ("end_factor", -0.1), ("end_factor", 2.0)]
)
def test_values_out_of_range(name, value):
    values = {"power": 1.0, "end_factor": 0.0, name: value}
    with pytest.raises(ConfigError, match=rf"^{name}: must be .*, got "):
        polynomial(0, warmup_steps=0, total_steps=10, **values)
