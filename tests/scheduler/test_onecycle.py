import warnings
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import OneCycleLR

from tests.support.scheduler_reference import BASE_LR, check_never_rises, runs
from trainer.errors import ConfigError
from trainer.scheduler.onecycle import onecycle

ANNEALS = ["cos", "linear"]
# Torch divides by zero if the rise has one step or is the whole run.
RUNS = [(0, 1), (0, 12), (2, 12), (6, 12), (11, 12), (3, 17), (30, 100)]


def reference_factors(warmup_steps, total_steps, **arguments):
    """Return the factors of torch's OneCycleLR at the steps of a run."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=7.0)
    share = warmup_steps / total_steps
    schedule = OneCycleLR(optimizer, BASE_LR, total_steps, pct_start=share, cycle_momentum=False, **arguments)
    values = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        for _ in range(total_steps):
            values.append(schedule.get_last_lr()[0] / BASE_LR)
            schedule.step()
    return values


@pytest.mark.parametrize("three_phase", [False, True])
def test_matches_torch(three_phase):
    for warmup_steps, total_steps in RUNS:
        if three_phase and not 1 <= warmup_steps <= total_steps / 2:
            continue
        for div_factor, final_div_factor, anneal in [(25.0, 1e4, "cos"), (1.0, 1.0, "linear"), (10, 3.5, "linear")]:
            factors = {"div_factor": div_factor, "final_div_factor": final_div_factor, "three_phase": three_phase}
            factor = partial(onecycle, warmup_steps=warmup_steps, total_steps=total_steps, anneal=anneal, **factors)
            theirs = reference_factors(warmup_steps, total_steps, anneal_strategy=anneal, **factors)
            # Torch's phases end at a rounded share of the run, ours at an integer.
            assert [factor(step) for step in range(total_steps)] == pytest.approx(theirs, rel=1e-12, abs=1e-14)


@settings(max_examples=40)
@given(run=runs(), anneal=st.sampled_from(ANNEALS), div_factor=st.floats(1, 1e3), final_div_factor=st.floats(1, 1e6))
def test_rises_to_the_peak_then_decays(run, anneal, div_factor, final_div_factor):
    warmup_steps, total_steps = run
    values = {"div_factor": div_factor, "final_div_factor": final_div_factor, "anneal": anneal, "three_phase": False}
    factor = partial(onecycle, warmup_steps=warmup_steps, total_steps=total_steps, **values)
    peak = max(0, warmup_steps - 1)
    if warmup_steps > 1:
        assert factor(0) == pytest.approx(1 / div_factor, rel=1e-15)
    if warmup_steps:
        assert factor(peak) == 1.0
    check_never_rises(lambda step: 1.0 - factor(step), 0, peak)
    check_never_rises(factor, peak, total_steps - 1)
    end = pytest.approx(1 / div_factor / final_div_factor, abs=1e-15)
    assert [factor(step) for step in range(max(total_steps - 1, peak + 1), total_steps + 4)] == [end] * (
        total_steps + 4 - max(total_steps - 1, peak + 1)
    )


@settings(max_examples=40)
@given(run=runs(), anneal=st.sampled_from(ANNEALS), div_factor=st.floats(1, 1e3))
def test_three_phases_decay_as_they_rose(run, anneal, div_factor):
    warmup_steps, rest = run[0] + 1, run[1]
    total_steps = 2 * warmup_steps - 1 + rest
    values = {"div_factor": div_factor, "final_div_factor": 100.0, "anneal": anneal, "three_phase": True}
    factor = partial(onecycle, warmup_steps=warmup_steps, total_steps=total_steps, **values)
    rise = [factor(step) for step in range(warmup_steps)]
    fall = [factor(step) for step in range(2 * warmup_steps - 2, warmup_steps - 2, -1)]
    assert rise == pytest.approx(fall, rel=1e-12)
    check_never_rises(factor, warmup_steps - 1, total_steps + 3)


def test_half_of_the_run_rises_in_three_phases_if_it_is_rounded_up():
    values = {"div_factor": 25.0, "final_div_factor": 1e4, "anneal": "cos", "three_phase": True}
    for warmup_steps, total_steps in [(1, 1), (2, 3), (6, 12)]:
        factor = partial(onecycle, warmup_steps=warmup_steps, total_steps=total_steps, **values)
        assert factor(warmup_steps - 1) == 1.0
        assert factor(total_steps) == pytest.approx(1 / 25 / 1e4)


@pytest.mark.parametrize("warmup_steps", [0, 7])
def test_three_phases_that_do_not_fit_raise(warmup_steps):
    values = {"div_factor": 25.0, "final_div_factor": 1e4, "anneal": "cos", "three_phase": True}
    with pytest.raises(ConfigError, match=rf"^warmup: must be at least 1 step .*, got {warmup_steps} of 12 steps"):
        onecycle(0, warmup_steps=warmup_steps, total_steps=12, **values)


def test_values_out_of_range_are_reported_together():
    values = {"div_factor": 0.5, "final_div_factor": 0, "anneal": "cos", "three_phase": False}
    with pytest.raises(ConfigError) as error:
        onecycle(0, warmup_steps=3, total_steps=10, **values)
    assert [message.split(":")[0] for message in error.value.messages] == ["div_factor", "final_div_factor"]
