"""The ranges of the optimizers' parameters: each function gives a message for a person, or None for one in range."""

import math
from collections.abc import Sequence

from trainer.errors import explain


def positive(name: str, value: float) -> str | None:
    """In range: finite and above 0."""
    return None if 0 < value < math.inf else explain(name, "must be finite and above 0", value=value)


def not_negative(name: str, value: float) -> str | None:
    """In range: finite and at least 0."""
    return None if 0 <= value < math.inf else explain(name, "must be finite and not negative", value=value)


def decaying(name: str, value: float) -> str | None:
    """In range: [0, 1), the share of the past that a running mean keeps."""
    return None if 0 <= value < 1 else explain(name, "must be at least 0 and below 1", value=value)


def two_decaying(name: str, values: Sequence[float]) -> str | None:
    """In range: two values in [0, 1)."""
    if len(values) == 2 and all(0 <= value < 1 for value in values):
        return None
    return explain(name, "must be two values of at least 0 and below 1", value=values)
