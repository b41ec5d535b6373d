"""What one cell of a row holds."""

from typing import Any


def as_text(cell: Any) -> str:
    """A text, or a number as one: 3, 3.0 and True are `3`, `3` and `1`, as in training."""
    if not isinstance(cell, str | int | float | None):
        raise ValueError(f"expected a text, got {type(cell).__name__}")
    if cell is None or cell != cell or not str(cell).strip():
        raise ValueError("holds nothing")
    return str(int(cell) if isinstance(cell, bool | float) and cell % 1 == 0 else cell)
