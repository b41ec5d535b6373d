"""A learning rate that falls along a line."""


def linear(step: int, *, warmup_steps: int, total_steps: int) -> float:
    """The factor on the base learning rate at `step`: up from 0 to 1, then down to 0, both along a line.

    The schedule of BERT (Devlin et al. 2019, https://arxiv.org/abs/1810.04805). It stays 0 after the run.

    Args:
        step: Optimizer updates done before this one.
        warmup_steps: Updates of the linear rise.
        total_steps: Updates of the whole run.
    """
    if step < warmup_steps:
        return step / warmup_steps
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))
