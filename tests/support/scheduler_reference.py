"""What the schedules are compared with (transformers' own lambdas) and what they have in common."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch.optim.lr_scheduler import LambdaLR

from trainer.protocols import MetricSchedule

BASE_LR = 1.0

# (warmup_steps, total_steps): none, short, long and nothing but warm-up, in short and long runs.
RUNS = [(0, 1), (1, 1), (0, 12), (1, 12), (11, 12), (12, 12), (3, 17), (5, 100), (50, 1000)]

every_run = pytest.mark.parametrize(("warmup_steps", "total_steps"), RUNS)


def factors(get_schedule: Callable[..., LambdaLR], **arguments: Any) -> Callable[[int], float]:
    """The function step -> factor of one of transformers' `get_*_schedule`."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE_LR)
    (factor,) = get_schedule(optimizer, **arguments).lr_lambdas
    return factor


@st.composite
def runs(draw: st.DrawFn) -> tuple[int, int]:
    """(warmup_steps, total_steps) with at least one step after the warm-up."""
    total_steps = draw(st.integers(1, 400))
    return draw(st.integers(0, total_steps - 1)), total_steps


def check_warmup(factor: Callable[[int], float], warmup_steps: int, start: float = 0.0) -> None:
    """The factor rises along a line from `start` and is 1 at the end of the warm-up, one even step after the last."""
    for step in range(warmup_steps):
        assert factor(step) == pytest.approx(start + (1 - start) * step / warmup_steps, abs=1e-15)
    assert factor(warmup_steps) == 1.0


def check_goes_on_from_json(
    make: Callable[[], MetricSchedule], scores: Sequence[float], future: Sequence[float], higher_is_better: bool
) -> None:
    """What looks at `scores` leave goes through JSON, and another schedule goes on from it at the same rates."""
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
    """The factor stays in [0, 1] and never rises from one step to the next, `first` to `last`."""
    values = [factor(step) for step in range(first, last + 1)]
    assert all(0.0 <= value <= 1.0 for value in values)
    assert all(after <= before for before, after in pairwise(values))
