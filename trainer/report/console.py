"""The screen: a progress display on a terminal, plain lines elsewhere, and tables of results."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from trainer.display import displayable
from trainer.signals import drop_output

ConsoleStyle = Literal["auto", "rich", "plain", "none"]

_LABELS = {"samples_per_second": "samples/s", "tokens_per_second": "tokens/s"}
_RATES = frozenset(_LABELS)


class _Screen(Console):
    """A console that shows texts as they are, without secrets.

    It raises BrokenPipeError if the reader of the output has gone, or prints nothing from then on.
    """

    def __init__(self, style: ConsoleStyle, *, outlives_reader: bool) -> None:
        super().__init__(force_terminal=True if style == "rich" else None, markup=False, emoji=False, highlight=False)
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


def open_screen(style: ConsoleStyle, console: Console, *, total_steps: int) -> Display | Lines | None:
    """Return the sink that shows events on the screen.

    Args:
        style: `auto` is `rich` on a terminal and `plain` elsewhere; `none` returns None.
        console: The screen; log records must be printed through it too (see `log_to_file_and_screen`).
        total_steps: Optimizer steps of the whole run.
    """
    if style == "none":
        return None
    is_capable = console.is_terminal and not console.is_dumb_terminal
    if style == "rich" or (style == "auto" and is_capable):
        return Display(console, total_steps)
    return Lines(console, total_steps)


class Lines:
    """Prints one line per event."""

    def __init__(self, console: Console, total_steps: int) -> None:
        self._console = console
        self._pace = Pace(total_steps)

    def log(self, event: str, *, step: int, epoch: float, values: Mapping[str, object]) -> None:
        self._pace.observe(step)
        fields = [f"{event:<10}", f"{self._pace.progress(step)}  epoch {epoch:6.2f}", *_format_fields(values)]
        if event == "train":
            fields.append(f"eta {self._pace.eta(step)}")
        self._console.out("  ".join(fields), highlight=False)

    def close(self) -> None:
        """Do nothing; no resources are held."""


class Display:
    """A progress bar over the steps with the newest numbers below it; events other than `train` are lines above it.

    It takes over the terminal at the first event and releases it at the `end` event or in `close`. It has no thread of
    its own and is redrawn only at events: a loader's worker that is forked while another thread draws would inherit a
    locked lock.
    """

    def __init__(self, console: Console, total_steps: int) -> None:
        self._console = console
        self._pace = Pace(total_steps)
        self._progress = Progress(
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            console=console,
            expand=True,
        )
        self._task = self._progress.add_task("", total=total_steps)
        self._numbers = Text(no_wrap=True, overflow="ellipsis")
        self._live = Live(Group(self._progress, self._numbers), console=console, auto_refresh=False)

    def log(self, event: str, *, step: int, epoch: float, values: Mapping[str, object]) -> None:
        self._pace.observe(step)
        if not self._live.is_started:
            self._live.start()
        if event == "train":
            self._numbers.plain = "  ".join(_format_fields(values))
        else:
            line = "  ".join([event, self._pace.progress(step), *_format_fields(values)])
            self._console.out(line, highlight=False)
        description = f"epoch {epoch:.2f}  eta {self._pace.eta(step)}"
        self._progress.update(self._task, completed=step, description=description)
        self._live.refresh()
        if event == "end":
            self.close()  # results are printed below the display

    def close(self) -> None:
        """Leave the last state on the screen and release the terminal; a second call does nothing."""
        self._live.stop()


class Pace:
    """Progress and remaining time of a run, at its average speed in this process."""

    def __init__(self, total_steps: int) -> None:
        self._total_steps = total_steps
        self._first: tuple[int, float] | None = None

    def observe(self, step: int) -> None:
        """Start the clock at the first step observed, which is later than 0 in a resumed run."""
        if self._first is None:
            self._first = step, time.monotonic()

    def progress(self, step: int) -> str:
        """Return `  50/930`, always of the same width."""
        return f"{step:>{len(str(self._total_steps))}}/{self._total_steps}"

    def eta(self, step: int) -> str:
        """Return the remaining time, `0:12:34`; `?` before the first step is done."""
        if self._first is None or step <= self._first[0]:
            return "?"
        first_step, start = self._first
        return estimate_time(step - first_step, self._total_steps - step, time.monotonic() - start)


def estimate_time(done_steps: int, remaining_steps: int, seconds: float) -> str:
    """Return the time for `remaining_steps` if `done_steps` took `seconds`: hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds / done_steps * remaining_steps)))


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


def print_table(console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table: with rules on a terminal, else as aligned text of any width, so that nothing is cut off.

    Floats are formatted by `format_number`, None is empty, everything else by `str`. Columns of numbers are
    right-aligned.
    """
    rows = [list(row) for row in rows]
    cells = [[_format_cell(value) for value in row] for row in rows]
    is_right = [all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(columns))]
    if console.is_terminal:
        drawn = Table(title=Text(displayable(title)), title_justify="left")
        for name, right in zip(columns, is_right, strict=True):
            drawn.add_column(Text(displayable(name)), justify="right" if right else "left", overflow="fold")
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


def _format_fields(values: Mapping[str, object]) -> list[str]:
    shown = {name: value for name, value in values.items() if value is not None and value is not False}
    return [_format_field(name, value) for name, value in shown.items() if not isinstance(value, Mapping)]


def _format_field(name: str, value: Any) -> str:
    if value is True:
        return name
    if isinstance(value, str | list):
        return displayable(value if isinstance(value, str) else ", ".join(map(str, value)), keep_lines=False)
    shown = f"{value:.0f}" if name in _RATES else format_bytes(value) if name == "memory" else format_number(value)
    return f"{_LABELS.get(name, name)} {shown:>9}"


def _format_cell(value: object) -> str:
    if isinstance(value, float):
        return format_number(value)
    return "" if value is None else displayable(str(value), keep_lines=False)
