"""Where a step lies in a phase of the schedule."""


def progress(step: int, start: int, end: int) -> float:
    """How much of the steps from `start` to `end` is over at `step`: 0 at `start`, 1 at `end`, 0 in an empty phase."""
    return (step - start) / max(1, end - start)
