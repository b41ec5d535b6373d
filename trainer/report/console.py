"""The console: output without secrets and control characters, numbers and tables for people."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainer.display import displayable, shorten_middle
from trainer.signals import drop_output

ConsoleStyle = Literal["auto", "rich", "plain", "none"]

_LABELS = {"samples_per_second": "samples/s", "tokens_per_second": "tokens/s"}
_RATES = frozenset(_LABELS)

_MIN_NAME, _MAX_NAME = 12, 60
"""Characters of a name in a table."""


class _Screen(Console):
    """A console that shows texts as they are, without secrets.

    It raises BrokenPipeError if the reader of the output has gone, or prints nothing from then on.
    """

    def __init__(self, style: ConsoleStyle, *, outlives_reader: bool) -> None:
        super().__init__(
            force_terminal=True if style == "rich" else None,
            force_jupyter=False,  # in a notebook, rich would make an output of its own from each line
            markup=False,
            emoji=False,
            highlight=False,
        )
        self._outlives_reader = outlives_reader

    def out(self, *objects: Any, **options: Any) -> None:
        super().out(*(displayable(str(each)) for each in objects), **options)

    def on_broken_pipe(self) -> None:
        """Called in the `except` block of a failed write; rich itself would end the process with exit code 1."""
        if not self._outlives_reader:
            raise
        drop_output()
        self.quiet = True


def open_console(style: ConsoleStyle, *, outlives_reader: bool = False) -> Console:
    """Return a console on standard output.

    Args:
        style: `rich` treats any output as a terminal.
        outlives_reader: Print nothing if the reader of the output has gone, instead of raising BrokenPipeError.
    """
    return _Screen(style, outlives_reader=outlives_reader)


def format_bytes(count: int | None) -> str:
    """Return a number of bytes in a unit that people read; None was not measured."""
    if count is None:
        return "? (no trial)"
    value, unit = float(count), 0
    while value >= 1000 and unit < 3:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} B" if unit == 0 else f"{value:.1f} {('kB', 'MB', 'GB')[unit - 1]}"


def format_number(value: float) -> str:
    """Format a number for people: integers in full, floats with four decimals, or with an exponent if far from 1."""
    if isinstance(value, int) or value == 0 or not math.isfinite(value):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if 0.01 <= abs(value) < 10_000:
        return f"{value:.4f}"
    return f"{value:.3e}"


def can_draw(console: Console) -> bool:
    """Return whether the output is a terminal that can do more than print one character after another."""
    return console.is_terminal and not console.is_dumb_terminal


def print_indented(console: Console, name: str, text: str) -> None:
    """Print a name and a text; on a terminal, the text is wrapped between words and its further lines are indented."""
    lines = [text]
    if can_draw(console):
        width = max(20, console.width - len(name) - 1)
        lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    console.out(name + ("\n" + " " * len(name)).join(lines), highlight=False)


def print_table(
    console: Console,
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    names: Collection[int] = (),
) -> None:
    """Print a table: with rules on a terminal, else as aligned text of any width, so that nothing is cut off.

    Floats are formatted by `format_number`, None is empty, everything else by `str`. Columns of numbers are
    right-aligned.

    Args:
        console: The console.
        title: What the table contains.
        columns: The headers.
        rows: The cells.
        names: The places of columns with names from the data: they are shortened to at most 60 characters, on a
            terminal to what its width leaves.
    """
    rows = [list(row) for row in rows]
    cells = [[_format_cell(value) for value in row] for row in rows]
    _shorten_names(console, columns, cells, names)
    is_right = [all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(columns))]
    if can_draw(console):
        drawn = Table(title=Text(displayable(title)), title_justify="left")
        widths = [max([0, *map(len, column)]) for column in zip(*cells, strict=True)] or [0] * len(columns)
        natural = sum(max(width, len(name)) + 3 for width, name in zip(widths, columns, strict=True)) + 1
        for name, right, width in zip(columns, is_right, widths, strict=True):
            header = displayable(name)
            if natural > console.width:  # rich would rather break the cells
                header = _break_header(header, width)
            drawn.add_column(Text(header), justify="right" if right else "left", overflow="fold")
        for row in cells:
            drawn.add_row(*map(Text, row))
        console.print(drawn)
        return
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    console.out(title, highlight=False)
    for row in [list(columns), *cells]:
        padded = (
            f"{cell:>{width}}" if right else f"{cell:<{width}}"
            for cell, width, right in zip(row, widths, is_right, strict=True)
        )
        console.out("  " + "  ".join(padded).rstrip(), highlight=False)


def _shorten_names(
    console: Console, columns: Sequence[str], cells: Sequence[list[str]], names: Collection[int]
) -> None:
    """Shorten the cells of columns of names in place."""
    if not names:
        return
    limit = _MAX_NAME
    if can_draw(console):
        others = [place for place in range(len(columns)) if place not in names]
        taken = sum(max([len(row[place]) for row in cells], default=0) + 3 for place in others)
        limit = min(limit, max(_MIN_NAME, (console.width - taken - 1) // len(names) - 3))
    for row in cells:
        for place in names:
            row[place] = shorten_middle(row[place], limit)


def _break_header(header: str, width: int) -> str:
    """Return a header in lines of at most `width` characters, broken only between words and behind underscores."""
    lines = [""]
    for part in re.findall(r"[^\s_]*(?:_+|\s+|$)", header):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def format_fields(values: Mapping[str, object], *, width: int = 9) -> list[str]:
    """Return the name and the value of each number, text and flag of an event; what is None or False is left out.

    Args:
        values: The values of the event.
        width: The least width of a number.
    """
    shown = {name: value for name, value in values.items() if value is not None and value is not False}
    return [_format_field(name, value, width) for name, value in shown.items() if not isinstance(value, Mapping)]


def _format_field(name: str, value: Any, width: int) -> str:
    if value is True:
        return name
    if isinstance(value, str | list):
        return displayable(value if isinstance(value, str) else ", ".join(map(str, value)), keep_lines=False)
    shown = f"{value:.0f}" if name in _RATES else format_bytes(value) if name == "memory" else format_number(value)
    return f"{_LABELS.get(name, name)} {shown:>{width}}"


def _format_cell(value: object) -> str:
    if isinstance(value, float):
        return format_number(value)
    return "" if value is None else displayable(str(value), keep_lines=False)
