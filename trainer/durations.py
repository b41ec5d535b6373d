"""Durations in optimizer steps, epochs and shares of the run; and time limits in seconds to days."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Literal, cast

from trainer.errors import ConfigError, format_error

Unit = Literal["st", "ep", "%"]

FORMS = "Use optimizer steps (500 or 500st), epochs (3ep or 0.5ep) or a share of the run (0% to 100%)"
"""The remedy for a value that is not a duration."""

LENGTH_FORMS = "Use optimizer steps (500 or 500st) or epochs (3ep or 0.5ep)"
"""The remedy for the length of a run, which cannot be a share of itself."""

TIME_FORMS = "Use a number and a unit: 30s, 10m, 4h, 1d or 1h30m"
"""The remedy for a value that is not an amount of time."""

_PATTERN = re.compile(r"(?P<amount>[0-9]+(?:\.[0-9]+)?)(?P<unit>st|ep|%)")

_NOT_ZERO = "(?=[0-9.]*[1-9])"
_FRACTION = r"(\.[0-9]+)?"

_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_TIME = "".join(f"([0-9]+{_FRACTION}{unit})?" for unit in _SECONDS)
_TIME_PART = re.compile(r"([0-9.]+)([dhms])")


@dataclass(frozen=True)
class Duration:
    """An amount of optimizer steps (`st`), epochs (`ep`) or percent of the run (`%`)."""

    amount: Decimal
    unit: Unit


def parse(value: object) -> Duration | None:
    """Return the duration that a value stands for, or None if it is not a duration."""
    if isinstance(value, int) and not isinstance(value, bool):
        return Duration(Decimal(value), "st") if value >= 0 else None
    match = _PATTERN.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    amount = Decimal(match["amount"])
    unit: Unit = cast(Unit, match["unit"])
    whole = amount == amount.to_integral_value()
    if (unit == "st" and not whole) or (unit == "%" and amount > 100):
        return None
    return Duration(amount, unit)


def parse_time(value: object) -> Decimal | None:
    """Return the seconds that a value such as `30s`, `4h` or `1h30m` stands for, or None if it is no amount of time."""
    if not isinstance(value, str) or not value or re.fullmatch(_TIME, value) is None:
        return None
    return sum((Decimal(amount) * _SECONDS[unit] for amount, unit in _TIME_PART.findall(value)), Decimal(0))


def time_pattern(*, above_zero: bool) -> str:
    """Return the regular expression of the texts that `parse_time` accepts, for editors."""
    return f"^(?=.{'*[1-9]' if above_zero else ''}){_TIME}$"


def text_pattern(*, above_zero: bool, may_be_share: bool = True) -> str:
    """Return the regular expression of the texts that `parse` accepts, for editors.

    Args:
        above_zero: A duration of zero is not allowed.
        may_be_share: A share of the run is allowed.
    """
    forms = [rf"[0-9]+{_FRACTION}ep", r"[0-9]+(\.0+)?st"]
    forms += [rf"0*([0-9]{{1,2}}{_FRACTION}|100(\.0+)?)%"] if may_be_share else []
    return f"^{_NOT_ZERO if above_zero else ''}({'|'.join(forms)})$"


def to_steps(value: int | str, steps_per_epoch: int, total_steps: int | None = None, *, key: str = "duration") -> int:
    """Convert a duration to optimizer steps: the nearest step (halves go up), at least 1 unless the duration is zero.

    Args:
        value: The duration in the config, such as 500, `500st`, `3ep` or `10%`.
        steps_per_epoch: Optimizer steps of one epoch.
        total_steps: Optimizer steps of the whole run; None if the duration is the length of the run itself.
        key: The key of the duration, for messages.

    Raises:
        ConfigError: `value` is not a duration, or it is a percentage and `total_steps` is None.
    """
    duration = parse(value)
    if duration is None:
        raise ConfigError(
            format_error(key, "must be a duration", LENGTH_FORMS if total_steps is None else FORMS, value=value)
        )
    if duration.unit == "%" and total_steps is None:
        raise ConfigError(format_error(key, "percentages are not allowed here", LENGTH_FORMS, value=value))
    scale = {"st": Decimal(1), "ep": Decimal(steps_per_epoch), "%": Decimal(total_steps or 0) / 100}[duration.unit]
    steps = int((duration.amount * scale).to_integral_value(ROUND_HALF_UP))
    return max(steps, 1) if duration.amount else 0
