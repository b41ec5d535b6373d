from functools import partial

from hypothesis import given
from transformers.optimization import get_linear_schedule_with_warmup

from tests.support.scheduler_reference import (
    RUNS,
    check_equal,
    check_never_rises,
    check_warmup,
    reference_factors,
    runs,
)
from trainer.scheduler.linear import linear


def test_matches_transformers():
    for warmup_steps, total_steps in RUNS:
        theirs = reference_factors(
            get_linear_schedule_with_warmup, num_warmup_steps=warmup_steps, num_training_steps=total_steps
        )
        check_equal(partial(linear, warmup_steps=warmup_steps, total_steps=total_steps), theirs, total_steps)


@given(run=runs())
def test_rises_then_decays_to_zero(run):
    warmup_steps, total_steps = run
    factor = partial(linear, warmup_steps=warmup_steps, total_steps=total_steps)
    check_warmup(factor, warmup_steps)
    check_never_rises(factor, warmup_steps, total_steps + 3)
    assert factor(total_steps) == 0.0
