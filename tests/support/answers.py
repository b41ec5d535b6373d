"""Compare answers that different programs compute."""

from typing import Any

import pytest


def assert_close(got: Any, want: Any) -> None:
    """Compare answers up to rounding to six decimals and float32 sums in another order."""
    if isinstance(want, dict):
        assert list(got) == list(want)
        for name in want:
            if name != "error":
                assert_close(got[name], want[name])
    elif isinstance(want, list):
        assert len(got) == len(want)
        for one, other in zip(got, want, strict=True):
            assert_close(one, other)
    elif isinstance(want, float):
        assert got == pytest.approx(want, abs=3e-6, rel=3e-6)
    else:
        assert got == want
