"""The ranges of the schedules' parameters: each function gives a message for a person, or None for a value in range."""

import math

from trainer.errors import explain


def positive(name: str, value: float) -> str | None:
    """In range: finite and above 0."""
    return None if 0 < value < math.inf else explain(name, "must be finite and above 0", value=value)


def share(name: str, value: float) -> str | None:
    """In range: [0, 1]."""
    return None if 0 <= value <= 1 else explain(name, "must be between 0 and 1", value=value)


def shrinking(name: str, value: float) -> str | None:
    """In range: (0, 1)."""
    return None if 0 < value < 1 else explain(name, "must be above 0 and below 1", value=value)


def at_least(name: str, value: float, least: int) -> str | None:
    """In range: finite and not below `least`."""
    if least <= value < math.inf:
        return None
    return explain(name, f"must be {'' if isinstance(value, int) else 'finite and '}at least {least}", value=value)
