from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.optimization import get_wsd_schedule

from tests.support.scheduler_reference import (
    RUNS,
    check_equal,
    check_never_rises,
    check_warmup,
    reference_factors,
    runs,
)
from trainer.errors import ConfigError
from trainer.scheduler.warmup_stable_decay import warmup_stable_decay

SETTINGS = [("linear", 0.3, 0.0), ("cosine", 0.3, 0.1), ("1-sqrt", 1.0, 0.1), ("linear", 0.0, 0.1)]


def test_matches_transformers():
    for warmup_steps, total_steps in RUNS:
        for shape, share, min_factor in SETTINGS:
            decay_steps = round(share * (total_steps - warmup_steps))
            theirs = reference_factors(
                get_wsd_schedule,
                num_warmup_steps=warmup_steps,
                num_decay_steps=decay_steps,
                num_training_steps=total_steps,
                decay_type=shape,
                min_lr_ratio=min_factor,
            )
            ours = partial(
                warmup_stable_decay,
                warmup_steps=warmup_steps,
                decay_steps=decay_steps,
                total_steps=total_steps,
                shape=shape,
                min_factor=min_factor,
            )
            check_equal(ours, theirs, total_steps)


@settings(max_examples=40)
@given(
    run=runs(),
    decay_steps=st.integers(0, 80),
    shape=st.sampled_from(["linear", "cosine", "1-sqrt"]),
    min_factor=st.floats(0, 1),
)
def test_rises_stays_and_decays(run, decay_steps, shape, min_factor):
    warmup_steps, total_steps = run
    factor = partial(
        warmup_stable_decay,
        warmup_steps=warmup_steps,
        decay_steps=decay_steps,
        total_steps=total_steps,
        shape=shape,
        min_factor=min_factor,
    )
    check_warmup(factor, warmup_steps, start=min_factor)
    check_never_rises(factor, warmup_steps, total_steps + 3)
    for step in range(warmup_steps, max(warmup_steps, total_steps - decay_steps)):
        assert factor(step) == 1.0
    assert factor(total_steps) == min_factor


def test_a_decay_that_does_not_fit_is_shortened():
    values = {"warmup_steps": 6, "total_steps": 10, "shape": "linear", "min_factor": 0.0}
    for step in range(14):
        assert warmup_stable_decay(step, decay_steps=9, **values) == warmup_stable_decay(step, decay_steps=4, **values)


@pytest.mark.parametrize("min_factor", [-0.1, 1.1])
def test_min_factor_out_of_range_raises(min_factor):
    with pytest.raises(ConfigError, match=r"^min_factor: must be between 0 and 1, got "):
        warmup_stable_decay(0, warmup_steps=0, decay_steps=1, total_steps=2, shape="linear", min_factor=min_factor)
