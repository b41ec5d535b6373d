from functools import partial

from hypothesis import given
from transformers.optimization import get_constant_schedule_with_warmup

from tests.support.scheduler_reference import (
    RUNS,
    check_equal,
    check_never_rises,
    check_warmup,
    reference_factors,
    runs,
)
from trainer.scheduler.constant_with_warmup import constant_with_warmup


def test_matches_transformers():
    for warmup_steps, total_steps in RUNS:
        theirs = reference_factors(get_constant_schedule_with_warmup, num_warmup_steps=warmup_steps)
        check_equal(partial(constant_with_warmup, warmup_steps=warmup_steps), theirs, total_steps)


@given(run=runs())
def test_rises_then_stays(run):
    warmup_steps, total_steps = run
    factor = partial(constant_with_warmup, warmup_steps=warmup_steps)
    check_warmup(factor, warmup_steps)
    check_never_rises(factor, warmup_steps, total_steps)
