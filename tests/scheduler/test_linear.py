from functools import partial

from hypothesis import given
from transformers.optimization import get_linear_schedule_with_warmup

from tests.support.scheduler_reference import check_never_rises, check_warmup, every_run, factors, runs
from trainer.scheduler.linear import linear


@every_run
def test_equals_transformers(warmup_steps, total_steps):
    theirs = factors(get_linear_schedule_with_warmup, num_warmup_steps=warmup_steps, num_training_steps=total_steps)
    for step in range(total_steps + 4):
        assert linear(step, warmup_steps=warmup_steps, total_steps=total_steps) == theirs(step)


@given(run=runs())
def test_shape(run):
    warmup_steps, total_steps = run
    factor = partial(linear, warmup_steps=warmup_steps, total_steps=total_steps)
    check_warmup(factor, warmup_steps)
    check_never_rises(factor, warmup_steps, total_steps + 3)
    assert factor(total_steps) == 0.0
