"""The ranges of the schedules' parameters."""

import math

from trainer.errors import ConfigError, explain


def check_positive(name: str, value: float) -> None:
    """Raises ConfigError unless `value` is finite and above 0."""
    if not 0 < value < math.inf:
        raise ConfigError(explain(name, "must be finite and above 0", value=value))


def check_share(name: str, value: float) -> None:
    """Raises ConfigError unless `value` is in [0, 1]."""
    if not 0 <= value <= 1:
        raise ConfigError(explain(name, "must be between 0 and 1", value=value))
