import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import ReduceLROnPlateau

from trainer.scheduler.metric_based import is_improvement

SCORES = st.floats(-1e6, 1e6)
THRESHOLDS = st.sampled_from([0.0, 1e-4, 0.1, 1.0]) | st.floats(0, 2)
MODES = st.sampled_from(["rel", "abs"])


def compare_in_torch(value, best, higher, threshold, threshold_mode):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    mode = "max" if higher else "min"
    schedule = ReduceLROnPlateau(optimizer, mode, threshold=threshold, threshold_mode=threshold_mode)
    return schedule._is_better(value, schedule.mode_worse if best is None else best)


@given(value=SCORES, best=st.none() | SCORES, threshold=THRESHOLDS, higher=st.booleans())
def test_absolute_threshold_matches_torch(value, best, threshold, higher):
    ours = is_improvement(value, best, higher_is_better=higher, threshold=threshold, threshold_mode="abs")
    assert ours == compare_in_torch(value, best, higher, threshold, "abs")


# Torch's first best score is infinite, and infinity times 0 is not a number, hence thresholds below 1.
@given(value=SCORES, best=st.none() | st.floats(0, 1e6), threshold=st.floats(0, 0.999), higher=st.booleans())
def test_relative_threshold_matches_torch_for_scores_from_zero(value, best, threshold, higher):
    ours = is_improvement(value, best, higher_is_better=higher, threshold=threshold, threshold_mode="rel")
    assert ours == compare_in_torch(value, best, higher, threshold, "rel")


@given(value=SCORES, best=SCORES, threshold=THRESHOLDS, higher=st.booleans(), mode=MODES)
def test_improvement_is_better_and_symmetric_in_the_direction(value, best, threshold, higher, mode):
    options = {"threshold": threshold, "threshold_mode": mode}
    ours = is_improvement(value, best, higher_is_better=higher, **options)
    assert ours == is_improvement(-value, -best, higher_is_better=not higher, **options)
    if ours:
        assert value > best if higher else value < best


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_no_improvement(value):
    for best in (None, 0.5):
        for higher in (True, False):
            assert not is_improvement(value, best, higher_is_better=higher, threshold=0.0, threshold_mode="abs")
