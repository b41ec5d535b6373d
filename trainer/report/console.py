"""The console: output without secrets and control characters, numbers and tables for people."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

from rich.cells import cell_len
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
_MIN_PIECE = 3
"""Characters of a name, or of another part of a text, if not even two columns fit otherwise."""
_BREAK = re.compile(r"(?<=\s)(?!to\s)|(?<=[_/=:])(?=\S)|(?<=[^\s\d][.,])(?=\S)|(?<=[.,])(?=[^\s\d])")
"""The places at which a line may be broken: not inside a number, nor before the word in `0.8 to 0.9`."""
_NUMBER = re.compile(r"\W*\d[\d.,:]*(e[-+]?\d+)?\W*")


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


def print_sentence(console: Console, text: str) -> None:
    """Print a text, broken between words on a terminal and in one line elsewhere."""
    console.print(displayable(text), soft_wrap=not console.is_terminal)


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
    right-aligned. On a terminal, a table fits: texts wrap between words and behind `_`, `/`, `=`, `,` and `.`, longer
    pieces get an ellipsis, numbers are never broken, and columns that still do not fit follow in a table of their own
    with the first column.

    Args:
        console: The console.
        title: What the table contains.
        columns: The headers.
        rows: The cells.
        names: The places of columns with names from the data: they are shortened to at most 60 characters, on a
            terminal to what its width leaves, and not wrapped.
    """
    rows = [list(row) for row in rows]
    cells = [[_format_cell(value) for value in row] for row in rows]
    for row in cells:
        for place in names:
            row[place] = shorten_middle(row[place], _MAX_NAME)
    is_right = [all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(columns))]
    if can_draw(console):
        _draw_tables(console, title, [displayable(name) for name in columns], cells, is_right, names)
        return
    widths = [max(map(cell_len, column)) for column in zip(columns, *cells, strict=True)]
    console.out(title, highlight=False)
    for row in [list(columns), *cells]:
        gaps = [" " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
        padded = (gap + cell if right else cell + gap for cell, gap, right in zip(row, gaps, is_right, strict=True))
        console.out("  " + "  ".join(padded).rstrip(), highlight=False)


def _draw_tables(
    console: Console,
    title: str,
    columns: Sequence[str],
    cells: Sequence[Sequence[str]],
    is_right: Sequence[bool],
    names: Collection[int],
) -> None:
    """Draw a table that fits the console; what does not fit follows in further tables with the same first column."""
    natural: list[int] = []
    unbroken: list[int] = []
    least: list[int] = []
    bare: list[int] = []
    for place, (header, *values) in enumerate(zip(columns, *cells, strict=True)):
        widest = max(map(cell_len, values), default=0)
        natural.append(max(cell_len(header), widest))
        unbroken.append(max(_least_width(header, _MIN_NAME), widest))
        for limits, limit in ((least, _MIN_NAME), (bare, _MIN_PIECE)):
            needs = [widest] if is_right[place] else [_least_width(value, limit) for value in values]
            own = min(limit, widest) if place in names else max(needs, default=0)
            limits.append(max(_least_width(header, limit), own))
    for part in _divide(least, console.width - 1):
        room = console.width - 1 - 3 * len(part)
        widths = [natural[place] for place in part]
        for limits in (unbroken, least, bare):  # headers are broken before cells, and pieces are shortened last
            widths = _fit(widths, [limits[place] for place in part], room)
        console.print(Text(displayable(title)))  # a title of the table would be as narrow as the table
        drawn = Table()
        for place, width in zip(part, widths, strict=True):
            justify: Literal["right", "left"] = "right" if is_right[place] else "left"
            header = _wrap(columns[place], width)
            drawn.add_column(Text(header), justify=justify, width=width, overflow="fold")
        for row in cells:
            wrapped = (
                _shorten(row[place], width) if place in names else _wrap(row[place], width)
                for place, width in zip(part, widths, strict=True)
            )
            drawn.add_row(*map(Text, wrapped))
        console.print(drawn)


def _divide(least: Sequence[int], room: int) -> list[list[int]]:
    """Return the places of the columns of each table: the first one and as many others as fit."""
    parts = [[0]] if least else []
    for place in range(1, len(least)):
        if len(parts[-1]) > 1 and sum(least[each] + 3 for each in (*parts[-1], place)) > room:
            parts.append([0])
        parts[-1].append(place)
    return parts


def _fit(widths: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """Return widths of columns that fit, if they can: the widest ones shrink, none below its least width."""
    widths = list(widths)
    while sum(widths) > room:
        wide = [place for place in range(len(widths)) if widths[place] > least[place]]
        if not wide:
            break
        widths[max(wide, key=widths.__getitem__)] -= 1
    return widths


def _pieces(text: str) -> list[str]:
    """Return the parts of a text between which a line may be broken; a space belongs to the part before it."""
    return [piece for piece in _BREAK.split(text) if piece]


def _least_width(text: str, limit: int) -> int:
    """Return the width that a text needs: of its longest number, and of other pieces up to a limit."""
    pieces = (piece.rstrip() for piece in _pieces(text))
    return max(
        (cell_len(each) if _NUMBER.fullmatch(each) else min(cell_len(each), limit) for each in pieces), default=0
    )


def _wrap(text: str, width: int) -> str:
    """Return a text in lines of at most `width` columns; a longer piece gets an ellipsis."""
    lines = [""]
    for piece in _pieces(text):
        if lines[-1] and cell_len(lines[-1]) + cell_len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece if cell_len(piece.rstrip()) <= width else _shorten(piece.rstrip(), width)
    return "\n".join(line.rstrip() for line in lines)


def _shorten(text: str, width: int) -> str:
    """Return a text of at most `width` columns, with an ellipsis in the place of its middle."""
    length = max(3, width)
    while cell_len(text) > width and length >= 3:
        text, length = shorten_middle(text, length), length - 1
    return text


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
