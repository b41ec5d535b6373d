from functools import partial

from hypothesis import given
from transformers.optimization import get_constant_schedule_with_warmup

from tests.support.scheduler_reference import check_never_rises, check_warmup, every_run, factors, runs
from trainer.scheduler.constant_with_warmup import constant_with_warmup


@every_run
def test_equals_transformers(warmup_steps, total_steps):
    theirs = factors(get_constant_schedule_with_warmup, num_warmup_steps=warmup_steps)
    for step in range(total_steps + 4):
        assert constant_with_warmup(step, warmup_steps=warmup_steps) == theirs(step)


@given(run=runs())
def test_shape(run):
    warmup_steps, total_steps = run
    factor = partial(constant_with_warmup, warmup_steps=warmup_steps)
    check_warmup(factor, warmup_steps)
    check_never_rises(factor, warmup_steps, total_steps)
