import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.optimization import GreedyLR

from tests.support.scheduler_reference import BASE_LR, check_resumes_from_json, check_warmup
from trainer.errors import ConfigError
from trainer.scheduler.greedy import Greedy

DEFAULTS = {
    "warmup_steps": 0,
    "every_steps": 10,
    "factor": 0.5,
    "patience": 1,
    "threshold": 0.0,
    "threshold_mode": "abs",
    "min_factor": 0.01,
    "max_factor": 4.0,
    "cooldown": 0,
    "rise_cooldown": 0,
    "window": 1,
    "reset_after": None,
}

# Multiples of 1/64: GreedyLR adds to and subtracts from its running mean, which is exact only for such scores.
SCORE = st.integers(0, 640).map(lambda number: number / 64)
SCORES = st.lists(SCORE, max_size=40) | st.lists(SCORE, max_size=40).map(sorted)


@st.composite
def options(draw):
    return DEFAULTS | {
        "factor": draw(st.sampled_from([0.3, 0.5, 0.9])),
        "patience": draw(st.integers(0, 2)),
        "threshold": draw(st.sampled_from([0.0, 1e-6, 0.01, 0.5])),
        "threshold_mode": draw(st.sampled_from(["rel", "abs"])),
        "min_factor": draw(st.sampled_from([0.0, 0.2, 1.0])),
        "max_factor": draw(st.sampled_from([1.0, 2.0, 10.0])),
        "cooldown": draw(st.integers(0, 3)),
        "rise_cooldown": draw(st.integers(0, 3)),
        "window": draw(st.integers(1, 4)),
        "reset_after": draw(st.none() | st.integers(1, 4)),
    }


def make_reference(options, higher_is_better):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE_LR)
    names = ("factor", "patience", "threshold", "threshold_mode", "cooldown")
    schedule = GreedyLR(
        optimizer,
        mode="max" if higher_is_better else "min",
        warmup=options["rise_cooldown"],
        min_lr=options["min_factor"] * BASE_LR,
        max_lr=options["max_factor"] * BASE_LR,
        eps=0.0,
        smooth=options["window"] > 1,
        window_size=options["window"],
        reset_start=options["reset_after"] or 1_000_000,
        **{name: options[name] for name in names},
    )
    return schedule, optimizer


@given(options=options(), scores=SCORES, higher_is_better=st.booleans())
def test_matches_transformers(options, scores, higher_is_better):
    ours = Greedy(**options)
    theirs, optimizer = make_reference(options, higher_is_better)
    for score in scores if higher_is_better else scores[::-1]:
        ours.observe(score, higher_is_better)
        theirs.step(score)
        assert ours(100) == pytest.approx(optimizer.param_groups[0]["lr"] / BASE_LR, rel=1e-14)


@settings(max_examples=40)
@given(options=options(), scores=SCORES, future=SCORES, higher_is_better=st.booleans())
def test_state_survives_json(options, scores, future, higher_is_better):
    check_resumes_from_json(lambda: Greedy(**options), scores, future, higher_is_better)


def test_warmup():
    ours = Greedy(**DEFAULTS | {"warmup_steps": 8})
    check_warmup(ours, 8)
    assert ours(9) == ours(1000) == 1.0


def test_a_known_sequence_with_a_restart():
    ours = Greedy(**DEFAULTS | {"patience": 0, "min_factor": 0.25, "reset_after": 2})
    factors = []
    for score in [5, 4, 3, 3, 3, 3, 3, 3, 3, 3]:
        ours.observe(score, higher_is_better=False)
        factors.append(ours(0))
    # Up to 4, down to 1/4, once more at 1/4: restart, after which the next score is the best so far.
    assert factors == [2.0, 4.0, 4.0, 2.0, 1.0, 0.5, 0.25, 1.0, 2.0, 1.0]


@pytest.mark.parametrize(("score", "higher_is_better"), [(math.nan, True), (math.inf, True), (-math.inf, False)])
def test_a_score_that_is_not_finite_is_no_improvement(score, higher_is_better):
    ours = Greedy(**DEFAULTS | {"window": 3})
    ours.observe(1.0, higher_is_better)
    for _ in range(2):
        ours.observe(score, higher_is_better)
    assert ours(0) == 0.5
    assert ours.state_dict()["best"] == 1.0
    assert ours.state_dict()["scores"] == [1.0]


def test_values_out_of_range_are_reported_together():
    bad = {
        "every_steps": 0,
        "patience": -1,
        "cooldown": -1,
        "threshold": -0.5,
        "factor": 0.0,
        "min_factor": 1.5,
        "max_factor": 0.5,
        "rise_cooldown": -1,
        "window": 0,
        "reset_after": 0,
    }
    with pytest.raises(ConfigError) as error:
        Greedy(**DEFAULTS | bad)
    assert {message.split(":")[0] for message in error.value.messages} == bad.keys()


def test_interval_of_observations():
    assert Greedy(**DEFAULTS).every_steps == 10
