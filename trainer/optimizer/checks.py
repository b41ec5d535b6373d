"""The ranges of the optimizers' parameters."""

import math

from trainer.errors import ConfigError, explain


def check_positive(name: str, value: float) -> None:
    """Raises ConfigError unless `value` is finite and above 0."""
    if not 0 < value < math.inf:
        raise ConfigError(explain(name, "must be finite and above 0", value=value))


def check_not_negative(name: str, value: float) -> None:
    """Raises ConfigError unless `value` is finite and at least 0."""
    if not 0 <= value < math.inf:
        raise ConfigError(explain(name, "must be finite and not negative", value=value))
