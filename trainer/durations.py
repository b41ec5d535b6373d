"""Durations: optimizer steps, or a number with a unit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Literal, cast

from trainer.errors import ConfigError, format_error

Unit = Literal["st", "ep", "%"]

FORMS = "An integer (optimizer steps) or a number with a unit: 500st, 3ep, 0.5ep, 10%"

_PATTERN = re.compile(r"(?P<amount>[0-9]+(?:\.[0-9]+)?)(?P<unit>st|ep|%)")


@dataclass(frozen=True)
class Duration:
    """An amount of optimizer steps (`st`), epochs (`ep`) or percent of the run (`%`)."""

    amount: Decimal
    unit: Unit


def parse(value: Any) -> Duration | None:
    """The duration that `value` writes, or None where it writes none."""
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


def to_steps(value: int | str, steps_per_epoch: int, total_steps: int | None = None, *, key: str = "duration") -> int:
    """A duration in optimizer steps.

    The nearest step (halves go up); at least 1, unless the duration is zero.

    Args:
        value: The duration as it is written.
        steps_per_epoch: Optimizer steps of one epoch.
        total_steps: Optimizer steps of the whole run; None while that is what is being computed.
        key: The name in messages.

    Raises:
        ConfigError: `value` is no duration, or a percentage of a length that is not known.
    """
    duration = parse(value)
    if duration is None:
        raise ConfigError(format_error(key, "is not a duration", FORMS, value=value))
    if duration.unit == "%" and total_steps is None:
        raise ConfigError(format_error(key, "a percentage has nothing to refer to here", "Use st or ep", value=value))
    scale = {"st": Decimal(1), "ep": Decimal(steps_per_epoch), "%": Decimal(total_steps or 0) / 100}[duration.unit]
    steps = int((duration.amount * scale).to_integral_value(ROUND_HALF_UP))
    return max(steps, 1) if duration.amount else 0
