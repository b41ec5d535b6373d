import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import ReduceLROnPlateau

from tests.support.scheduler_reference import BASE_LR, check_resumes_from_json, check_warmup
from trainer.errors import ConfigError
from trainer.scheduler.reduce_on_plateau import ReduceOnPlateau

DEFAULTS = {
    "warmup_steps": 0,
    "every_steps": 10,
    "factor": 0.5,
    "patience": 1,
    "threshold": 0.0,
    "threshold_mode": "rel",
    "min_factor": 0.0,
    "cooldown": 0,
}

# Few different scores, so that plateaus and ties occur; some are not finite.
SCORES = st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.505, 0.51, 1.0, 3.0, math.nan]) | st.floats(0, 10), max_size=40)


@st.composite
def options(draw):
    return DEFAULTS | {
        "factor": draw(st.sampled_from([0.1, 0.5, 0.9])),
        "patience": draw(st.integers(0, 3)),
        "threshold": draw(st.sampled_from([0.0, 1e-4, 0.01, 0.5])),
        "threshold_mode": draw(st.sampled_from(["rel", "abs"])),
        "min_factor": draw(st.sampled_from([0.0, 0.2, 1.0])),
        "cooldown": draw(st.integers(0, 3)),
    }


def make_reference(options, higher_is_better):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE_LR)
    names = ("factor", "patience", "threshold", "threshold_mode", "cooldown")
    schedule = ReduceLROnPlateau(
        optimizer,
        mode="max" if higher_is_better else "min",
        min_lr=options["min_factor"] * BASE_LR,
        eps=0.0,
        **{name: options[name] for name in names},
    )
    return schedule, optimizer


@given(options=options(), scores=SCORES, higher_is_better=st.booleans())
def test_matches_torch(options, scores, higher_is_better):
    ours = ReduceOnPlateau(**options)
    theirs, optimizer = make_reference(options, higher_is_better)
    for score in scores:
        ours.observe(score, higher_is_better)
        theirs.step(score)
        assert ours(100) == pytest.approx(optimizer.param_groups[0]["lr"] / BASE_LR, rel=1e-14)


@settings(max_examples=40)
@given(options=options(), scores=SCORES, future=SCORES, higher_is_better=st.booleans())
def test_state_survives_json(options, scores, future, higher_is_better):
    check_resumes_from_json(lambda: ReduceOnPlateau(**options), scores, future, higher_is_better)


def test_warmup():
    ours = ReduceOnPlateau(**DEFAULTS | {"warmup_steps": 8})
    check_warmup(ours, 8)
    assert ours(9) == ours(1000) == 1.0


def test_a_plateau_during_the_warmup_scales_all_of_it():
    ours = ReduceOnPlateau(**DEFAULTS | {"warmup_steps": 8, "patience": 0})
    ours.observe(1.0, higher_is_better=False)
    ours.observe(1.0, higher_is_better=False)
    assert [ours(step) for step in (0, 2, 8, 9)] == [0.0, 0.125, 0.5, 0.5]


def test_a_known_sequence():
    ours = ReduceOnPlateau(**DEFAULTS | {"patience": 2, "factor": 0.1, "min_factor": 0.05})
    factors = []
    for score in [3.0, 2.0, 2.0, 2.1, 2.0, 1.0, 1.0, 1.0, 1.0, 0.5]:
        ours.observe(score, higher_is_better=False)
        factors.append(ours(0))
    assert factors == [1.0] * 4 + [0.1] * 4 + [0.05] * 2


@pytest.mark.parametrize(("score", "higher_is_better"), [(math.nan, True), (math.inf, True), (-math.inf, False)])
def test_a_score_that_is_not_finite_is_no_improvement(score, higher_is_better):
    ours = ReduceOnPlateau(**DEFAULTS)
    for _ in range(2):
        ours.observe(score, higher_is_better)
    assert ours(0) == 0.5
    assert ours.state_dict()["best"] is None


def test_negative_scores_need_the_same_improvement_in_both_directions():
    for score, higher_is_better in [(-2.0, True), (-2.0, False)]:
        ours = ReduceOnPlateau(**DEFAULTS | {"patience": 0, "threshold": 0.1})
        for _ in range(3):
            ours.observe(score, higher_is_better)
        assert ours(0) == 0.25


def test_values_out_of_range_are_reported_together():
    bad = {"every_steps": 0, "patience": -1, "cooldown": -1, "threshold": math.nan, "factor": 1.0, "min_factor": 1.5}
    with pytest.raises(ConfigError) as error:
        ReduceOnPlateau(**DEFAULTS | bad)
    assert {message.split(":")[0] for message in error.value.messages} == bad.keys()


def test_interval_of_observations():
    assert ReduceOnPlateau(**DEFAULTS).every_steps == 10
