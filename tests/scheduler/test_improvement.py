import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import ReduceLROnPlateau

from trainer.scheduler.improvement import improves, out_of_range

SCORES = st.floats(-1e6, 1e6)
THRESHOLDS = st.sampled_from([0.0, 1e-4, 0.1, 1.0]) | st.floats(0, 2)


def theirs(value, best, mode, threshold, threshold_mode):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = ReduceLROnPlateau(optimizer, mode, threshold=threshold, threshold_mode=threshold_mode)
    return schedule._is_better(value, schedule.mode_worse if best is None else best)


@given(value=SCORES, best=st.none() | SCORES, threshold=THRESHOLDS, higher=st.booleans())
def test_an_absolute_threshold_is_torchs(value, best, threshold, higher):
    ours = improves(value, best, higher_is_better=higher, threshold=threshold, threshold_mode="abs")
    assert ours == theirs(value, best, "max" if higher else "min", threshold, "abs")


# torch's first best score is infinite, and infinity times 0 is no number: below 1.
@given(value=SCORES, best=st.none() | st.floats(0, 1e6), threshold=st.floats(0, 0.999), higher=st.booleans())
def test_a_relative_threshold_is_torchs_from_0_on(value, best, threshold, higher):
    ours = improves(value, best, higher_is_better=higher, threshold=threshold, threshold_mode="rel")
    assert ours == theirs(value, best, "max" if higher else "min", threshold, "rel")


@given(value=SCORES, best=SCORES, threshold=THRESHOLDS, higher=st.booleans(), mode=st.sampled_from(["rel", "abs"]))
def test_negating_the_metric_turns_the_direction(value, best, threshold, higher, mode):
    ours = improves(value, best, higher_is_better=higher, threshold=threshold, threshold_mode=mode)
    assert ours == improves(-value, -best, higher_is_better=not higher, threshold=threshold, threshold_mode=mode)


@given(value=SCORES, best=SCORES, threshold=THRESHOLDS, higher=st.booleans(), mode=st.sampled_from(["rel", "abs"]))
def test_what_improves_is_better(value, best, threshold, higher, mode):
    if improves(value, best, higher_is_better=higher, threshold=threshold, threshold_mode=mode):
        assert value > best if higher else value < best


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("best", [None, 0.5])
@pytest.mark.parametrize("higher", [True, False])
def test_what_is_not_finite_is_no_improvement(value, best, higher):
    assert not improves(value, best, higher_is_better=higher, threshold=0.0, threshold_mode="abs")


def test_out_of_range():
    assert out_of_range(1, 0, 0, 0.0) == (None, None, None, None)
    messages = out_of_range(0, -1, -2, math.nan)
    assert [message.split(":")[0] for message in messages] == ["every", "patience", "cooldown", "threshold"]
