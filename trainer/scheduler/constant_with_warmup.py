"""Constant learning rate after a linear warmup."""


def constant_with_warmup(step: int, *, warmup_steps: int) -> float:
    """Return the factor on the base learning rate at `step`: from 0 to 1 during the warmup, then 1.

    Args:
        step: Optimizer steps done before this one.
        warmup_steps: Steps of the linear warmup.
    """
    return step / warmup_steps if step < warmup_steps else 1.0
