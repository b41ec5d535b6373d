"""Reference schedules from transformers, and properties that our schedules share."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch.optim.lr_scheduler import LambdaLR

BASE_LR = 1.0

RUNS = [(0, 1), (1, 1), (0, 12), (1, 12), (11, 12), (12, 12), (3, 17), (5, 100), (50, 300)]
"""(warmup_steps, total_steps): no, a short, a long and only warmup, in short and long runs."""


def reference_factors(get_schedule: Callable[..., LambdaLR], **arguments: Any) -> Callable[[int], float]:
    """Return the function from step to factor of one of transformers' `get_*_schedule`."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE_LR)
    (factor,) = get_schedule(optimizer, **arguments).lr_lambdas
    return factor


@st.composite
def runs(draw: st.DrawFn) -> tuple[int, int]:
    """Draw (warmup_steps, total_steps) with at least one step after the warmup."""
    total_steps = draw(st.integers(1, 60))
    return draw(st.integers(0, total_steps - 1)), total_steps


def check_equal(ours: Callable[[int], float], theirs: Callable[[int], float], total_steps: int) -> None:
    """Check the factor at every step of a run and some steps after it, to a few ulp."""
    for step in range(total_steps + 4):
        assert ours(step) == pytest.approx(theirs(step), rel=1e-14, abs=1e-15), step


def check_warmup(factor: Callable[[int], float], warmup_steps: int, start: float = 0.0) -> None:
    """Check that the factor rises linearly from `start` and is 1 at the end of the warmup."""
    for step in range(warmup_steps):
        assert factor(step) == pytest.approx(start + (1 - start) * step / warmup_steps, abs=1e-15)
    assert factor(warmup_steps) == 1.0


def check_resumes_from_json(
    make: Callable[[], Any], scores: Sequence[float], future: Sequence[float], higher_is_better: bool
) -> None:
    """Check that the state after `scores` survives JSON and that a restored schedule continues with equal factors."""
    ours, restored = make(), make()
    for score in scores:
        ours.observe(score / 3, higher_is_better)
    state = json.dumps(ours.state_dict(), allow_nan=False)
    restored.load_state_dict(json.loads(state))
    assert restored.state_dict() == ours.state_dict()
    for score in future:
        ours.observe(score / 3, higher_is_better)
        restored.observe(score / 3, higher_is_better)
        assert restored(7) == ours(7)


def check_never_rises(factor: Callable[[int], float], first: int, last: int) -> None:
    """Check that the factor stays in [0, 1] and never rises from one step to the next, `first` to `last`."""
    values = [factor(step) for step in range(first, last + 1)]
    assert all(0.0 <= value <= 1.0 for value in values)
    assert all(after <= before for before, after in pairwise(values))
