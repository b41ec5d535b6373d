"""The typical cases of a long list run in every suite, the others in the slow one."""

from collections.abc import Iterable
from typing import Any

import pytest


def typical(cases: Iterable[str], *names: str) -> list[Any]:
    """Return the cases as parameters of a test: those not named are marked `slow`."""
    cases = list(cases)
    assert set(names) <= set(cases), f"not in the list: {set(names) - set(cases)}"
    return [case if case in names else pytest.param(case, marks=pytest.mark.slow) for case in cases]
