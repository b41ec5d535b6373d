from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.durations import Duration, parse, parse_time, to_steps
from trainer.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "steps"),
    [
        (500, 500),
        (0, 0),
        ("500st", 500),
        ("3ep", 300),
        ("0.5ep", 50),
        ("0.001ep", 1),
        ("10%", 40),
        ("12.5%", 50),
        ("0%", 0),
        ("0ep", 0),
        ("100%", 400),
    ],
)
def test_steps_of_each_form(value: int | str, steps: int) -> None:
    assert to_steps(value, steps_per_epoch=100, total_steps=400) == steps


def test_the_nearest_step_is_exact_and_halves_go_up() -> None:
    assert to_steps("0.5ep", 7) == 4
    assert to_steps("0.1ep", 30) == 3  # 0.1 * 30 is 3.0000000000000004 in binary
    assert to_steps("0.3%", 1, 1000) == 3


@pytest.mark.parametrize(
    "value",
    [-1, True, 1.5, 3.0, None, "", "3", "3epochs", "ep", "-3ep", "1.5st", "101%", "3 ep", "1e3st", "nanep", "\u0663ep"],
)
def test_what_is_no_duration(value: object) -> None:
    assert parse(value) is None
    with pytest.raises(ConfigError, match=r"^train\.duration: must be a duration, got .*500st"):
        to_steps(value, 100, key="train.duration")  # type: ignore[arg-type]


def test_a_percentage_needs_a_length() -> None:
    with pytest.raises(ConfigError, match=r"^duration: percentages .*got '10%'"):
        to_steps("10%", 100)


AMOUNTS = st.decimals(0, 1000, places=3)


@given(AMOUNTS, st.integers(1, 10**6))
def test_the_nearest_step_but_at_least_one(amount: Decimal, steps_per_epoch: int) -> None:
    exact = amount * steps_per_epoch
    steps = to_steps(f"{amount}ep", steps_per_epoch)
    assert abs(steps - exact) <= Decimal("0.5") or (steps == 1 and exact > 0)
    assert (steps == 0) == (amount == 0)


@given(AMOUNTS, AMOUNTS, st.integers(1, 1000))
def test_longer_is_never_fewer_steps(one: Decimal, other: Decimal, steps_per_epoch: int) -> None:
    short, long = sorted((one, other))
    assert to_steps(f"{short}ep", steps_per_epoch) <= to_steps(f"{long}ep", steps_per_epoch)


@given(st.integers(0, 10**9))
def test_steps_are_steps(steps: int) -> None:
    assert to_steps(steps, 17) == to_steps(f"{steps}st", 23) == steps
    assert parse(steps) == Duration(Decimal(steps), "st")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("30s", 30),
        ("10m", 600),
        ("4h", 14400),
        ("1d", 86400),
        ("1.5h", 5400),
        ("1h30m", 5400),
        ("0.1s", "0.1"),
        ("0s", 0),
    ],
)
def test_seconds_of_an_amount_of_time(value: str, seconds: int | str) -> None:
    assert parse_time(value) == Decimal(seconds)


@pytest.mark.parametrize(
    "value", [None, 30, 1.5, True, "", "30", "-4h", "4 h", "4H", "30m1h", "1h1h", "04:00:00", "h", "nans", "\u0663h"]
)
def test_what_is_no_amount_of_time(value: object) -> None:
    assert parse_time(value) is None
