"""The ranges of numbers: each function gives a message for a person, or None for a value in range."""

import math
from collections.abc import Sequence

from trainer.errors import format_error


def positive(name: str, value: float) -> str | None:
    """In range: finite and above 0."""
    return None if 0 < value < math.inf else format_error(name, "must be finite and above 0", value=value)


def not_negative(name: str, value: float) -> str | None:
    """In range: finite and at least 0."""
    return None if 0 <= value < math.inf else format_error(name, "must be finite and not negative", value=value)


def at_least(name: str, value: float, least: int) -> str | None:
    """In range: finite and not below `least`."""
    if least <= value < math.inf:
        return None
    return format_error(name, f"must be {'' if isinstance(value, int) else 'finite and '}at least {least}", value=value)


def share(name: str, value: float) -> str | None:
    """In range: [0, 1]."""
    return None if 0 <= value <= 1 else format_error(name, "must be between 0 and 1", value=value)


def below_one(name: str, value: float) -> str | None:
    """In range: [0, 1), as of the share of the past that a running mean keeps."""
    return None if 0 <= value < 1 else format_error(name, "must be at least 0 and below 1", value=value)


def two_below_one(name: str, values: Sequence[float]) -> str | None:
    """In range: two values in [0, 1)."""
    if len(values) == 2 and all(0 <= value < 1 for value in values):
        return None
    return format_error(name, "must be two values of at least 0 and below 1", value=values)


def fraction(name: str, value: float) -> str | None:
    """In range: (0, 1)."""
    return None if 0 < value < 1 else format_error(name, "must be above 0 and below 1", value=value)
