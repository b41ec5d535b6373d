"""The ranges of the models' parameters: each function gives one message for a person for each value out of range."""

from collections.abc import Sequence

from trainer.errors import format_error


def size_faults(**sizes: int) -> list[str]:
    """In range: at least 1."""
    return [format_error(name, "must be at least 1", value=size) for name, size in sizes.items() if size < 1]


def width_faults(**widths: Sequence[int]) -> list[str]:
    """In range: one or more sizes of at least 1."""
    return [
        format_error(name, "must be one or more sizes of at least 1", value=list(sizes))
        for name, sizes in widths.items()
        if not sizes or min(sizes) < 1
    ]


def dropout_faults(dropout: float) -> list[str]:
    """In range: [0, 1)."""
    return [] if 0 <= dropout < 1 else [format_error("dropout", "must be in [0, 1)", value=dropout)]


def image_faults(image_size: tuple[int, int], smallest: int, remedy: str = "") -> list[str]:
    """In range: height and width of at least `smallest` pixels."""
    if min(image_size) >= smallest:
        return []
    problem = f"the images must have {smallest} x {smallest} pixels at least"
    return [format_error("image_size", problem, remedy, value=list(image_size))]
