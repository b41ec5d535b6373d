from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.optimization import get_polynomial_decay_schedule_with_warmup

from tests.support.scheduler_reference import (
    BASE_LR,
    RUNS,
    check_equal,
    check_never_rises,
    check_warmup,
    reference_factors,
    runs,
)
from trainer.errors import ConfigError
from trainer.scheduler.polynomial import polynomial


def test_matches_transformers():
    for warmup_steps, total_steps in RUNS:
        for power, end_factor in [(0.5, 0.0), (1.0, 1e-7), (2.0, 0.1), (3, 0.0)]:
            reference = reference_factors(
                get_polynomial_decay_schedule_with_warmup,
                num_warmup_steps=warmup_steps,
                num_training_steps=total_steps,
                lr_end=end_factor * BASE_LR,
                power=power,
            )

            def theirs(step, warmup=warmup_steps, total=total_steps, end=end_factor, reference=reference):
                # In a run of only warmup, transformers divides by zero at its end.
                return end if step == warmup == total else reference(step)

            arguments = {"warmup_steps": warmup_steps, "total_steps": total_steps, "end_factor": end_factor}
            check_equal(partial(polynomial, power=power, **arguments), theirs, total_steps)


@settings(max_examples=40)
@given(run=runs(), power=st.floats(0.1, 10), end_factor=st.floats(0, 1))
def test_rises_then_decays_to_the_end_factor(run, power, end_factor):
    warmup_steps, total_steps = run
    factor = partial(polynomial, warmup_steps=warmup_steps, total_steps=total_steps, power=power, end_factor=end_factor)
    check_warmup(factor, warmup_steps)
    check_never_rises(factor, warmup_steps, total_steps + 3)
    assert factor(total_steps) == end_factor


@pytest.mark.parametrize(("name", "value"), [("power", 0.0), ("end_factor", -0.1), ("end_factor", 2.0)])
def test_values_out_of_range_raise(name, value):
    values = {"power": 1.0, "end_factor": 0.0, name: value}
    with pytest.raises(ConfigError, match=rf"^{name}: must be .*, got "):
        polynomial(0, warmup_steps=0, total_steps=10, **values)
