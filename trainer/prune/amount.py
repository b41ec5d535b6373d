"""How much is pruned, and what is wrong with asking for it."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.errors import ConfigError, format_error, raise_if_any


def check_amount(amount: float, units: Mapping[str, int], unit: str) -> None:
    """Refuses an amount that leaves nothing of a weight.

    Args:
        amount: A share in [0, 1), or a count where it is an integer, 0 or more; 1 is one, 1.0 would be all.
        units: How many of the units that are pruned each weight has.
        unit: What they are, in the plural: `elements`.

    Raises:
        ConfigError: All that is wrong.
    """
    is_count = isinstance(amount, int)
    if not (amount >= 0 if is_count else 0 <= amount < 1):
        problem = "must be a share, at least 0 and below 1, or a count, an integer"
        raise ConfigError(format_error("amount", problem, value=amount))
    faults = []
    for name, size in units.items():
        # As torch rounds it.
        count = amount if is_count else round(amount * size)
        if size and count >= size:
            remedy = "Take less, or leave it out of prune.targets"
            faults.append(
                format_error("amount", f"leaves nothing of {name}, which has {size} {unit}", remedy, value=amount)
            )
    raise_if_any(*faults)
