"""A learning rate that rises, then stays."""


def constant_with_warmup(step: int, *, warmup_steps: int) -> float:
    """The factor on the base learning rate at `step`: from 0 to 1 during the warm-up, then 1.

    Args:
        step: Optimizer updates done before this one.
        warmup_steps: Updates of the linear rise.
    """
    return step / warmup_steps if step < warmup_steps else 1.0
