import pytest

from trainer.scheduler.checks import at_least, positive, share, shrinking

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("check", "inside", "outside"),
    [
        (positive, [1e-300, 1, 1e300], [0, -1.0, INF, NAN]),
        (share, [0, 0.5, 1], [-1e-9, 1.0001, INF, NAN]),
        (shrinking, [1e-300, 0.999], [0.0, 1.0, -1.0, INF, NAN]),
        (lambda name, value: at_least(name, value, 1), [1, 1.0, 7], [0, 0.999, -INF, INF, NAN]),
    ],
)
def test_ranges(check, inside, outside):
    assert [check("key", value) for value in inside] == [None] * len(inside)
    for value in outside:
        assert check("key", value).startswith("key: must be ")
        assert f"got {value!r}" in check("key", value)
