import math

import pytest

from trainer.ranges import at_least, below_one, fraction, not_negative, positive, share, two_below_one


@pytest.mark.parametrize(
    ("check", "inside", "outside"),
    [
        (positive, [1e-300, 1, 1e300], [0, -1.0, math.inf, math.nan]),
        (not_negative, [0, 0.0, 5.0], [-1e-9, math.inf, math.nan]),
        (lambda name, value: at_least(name, value, 1), [1, 1.0, 7], [0, 0.999, -math.inf, math.inf, math.nan]),
        (share, [0, 0.5, 1], [-1e-9, 1.0001, math.inf, math.nan]),
        (below_one, [0, 0.5, 1 - 1e-16], [-1e-9, 1, 1.0, math.inf, math.nan]),
        (two_below_one, [(0, 0.5), [0.9, 0.999]], [(0.5,), (0.5, 1.0), (0.5, 0.5, 0.5), (math.nan, 0.5), ()]),
        (fraction, [1e-300, 0.999], [0.0, 1.0, -1.0, math.inf, math.nan]),
    ],
)
def test_the_ends_of_a_range(check, inside, outside):
    assert [check("key", value) for value in inside] == [None] * len(inside)
    for value in outside:
        assert check("key", value).startswith("key: must be ")
        assert check("key", value).endswith(f", got {value!r}.")
