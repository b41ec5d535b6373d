from transformers.optimization import get_constant_schedule

from tests.support.scheduler_reference import check_equal, reference_factors
from trainer.scheduler.constant import constant


def test_matches_transformers():
    check_equal(constant, reference_factors(get_constant_schedule), 20)
