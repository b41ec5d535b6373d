"""Linear decay of the learning rate after a linear warmup."""


def linear(step: int, *, warmup_steps: int, total_steps: int) -> float:
    """Return the factor on the base learning rate at `step`: linear from 0 to 1 and back to 0, then 0.

    The schedule of BERT (Devlin et al. 2019, https://arxiv.org/abs/1810.04805).

    Args:
        step: Optimizer steps done before this one.
        warmup_steps: Steps of the linear warmup.
        total_steps: Steps of the whole run.
    """
    if step < warmup_steps:
        return step / warmup_steps
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))
