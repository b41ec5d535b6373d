from transformers.optimization import get_constant_schedule

from tests.support.scheduler_reference import factors
from trainer.scheduler.constant import constant


def test_equals_transformers():
    theirs = factors(get_constant_schedule)
    assert [constant(step) for step in range(20)] == [theirs(step) for step in range(20)]
