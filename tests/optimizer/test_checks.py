import math

import pytest

from trainer.optimizer import checks


@pytest.mark.parametrize(
    ("check", "inside", "outside"),
    [
        (checks.positive, [1e-300, 1, 1e300], [0, -1.0, math.nan, math.inf]),
        (checks.not_negative, [0, 0.0, 5.0], [-1e-9, math.nan, math.inf]),
        (checks.decaying, [0, 0.5, 1 - 1e-16], [-1e-9, 1, 1.0, math.nan, math.inf]),
        (checks.two_decaying, [(0, 0.5), [0.9, 0.999]], [(0.5,), (0.5, 1.0), (0.5, 0.5, 0.5), (math.nan, 0.5), ()]),
    ],
)
def test_the_ends_of_a_range(check, inside, outside):
    assert [check("x", value) for value in inside] == [None] * len(inside)
    for value in outside:
        assert check("x", value).startswith("x: must be ")
        assert check("x", value).endswith(f", got {value!r}.")
