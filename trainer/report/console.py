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

Choice = Literal["auto", "rich", "plain", "none"]

_LABELS = {"samples_per_second": "samples/s", "tokens_per_second": "tokens/s"}
_RATES = frozenset(_LABELS)


def open_console(choice: Choice) -> Console:
    """Standard output; `rich` takes it for a terminal even where it is none."""
    return Console(force_terminal=True if choice == "rich" else None)


def screen(choice: Choice, console: Console, *, total_steps: int) -> Display | Lines | None:
    """The report for the screen.

    Args:
        choice: `auto` is `rich` on a terminal and `plain` elsewhere; `none` gives None.
        console: The screen; log records must go through the same one (see `logs.run_logs`).
        total_steps: Optimizer steps of the whole run.
    """
    if choice == "none":
        return None
    capable = console.is_terminal and not console.is_dumb_terminal
    return (
        Display(console, total_steps)
        if choice == "rich" or (choice == "auto" and capable)
        else Lines(console, total_steps)
    )


class Lines:
    """One line for each event."""

    def __init__(self, console: Console, total_steps: int) -> None:
        self._console = console
        self._pace = Pace(total_steps)

    def log(self, event: str, *, step: int, epoch: float, values: Mapping[str, Any]) -> None:
        self._pace.see(step)
        fields = [f"{event:<10}", f"{self._pace.progress(step)}  epoch {epoch:6.2f}", *_fields(values)]
        if event == "train":
            fields.append(f"left {self._pace.left(step)}")
        self._console.out("  ".join(fields), highlight=False)

    def close(self) -> None:
        """Nothing is held open."""


class Display:
    """A bar over the steps with the newest numbers below it; other events than `train` are lines above it.

    It takes the terminal at the first event and gives it back at the `end` event or in `close`. It has no thread of
    its own, and so is redrawn at events only: a loader's worker that is forked while another thread draws would
    inherit a held lock.
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

    def log(self, event: str, *, step: int, epoch: float, values: Mapping[str, Any]) -> None:
        self._pace.see(step)
        if not self._live.is_started:
            self._live.start()
        if event == "train":
            self._numbers.plain = "  ".join(_fields(values))
        else:
            self._console.out("  ".join([event, self._pace.progress(step), *_fields(values)]), highlight=False)
        description = f"epoch {epoch:.2f}  left {self._pace.left(step)}"
        self._progress.update(self._task, completed=step, description=description)
        self._live.refresh()
        if event == "end":
            self.close()  # results come below it

    def close(self) -> None:
        """Leaves the last state on the screen and gives the terminal back; a second call does nothing."""
        self._live.stop()


class Pace:
    """How far a run is and how long it still takes, at its average speed in this process."""

    def __init__(self, total_steps: int) -> None:
        self._total_steps = total_steps
        self._first: tuple[int, float] | None = None

    def see(self, step: int) -> None:
        """Counts from the first step seen: the one a run was resumed at, if it was."""
        if self._first is None:
            self._first = step, time.monotonic()

    def progress(self, step: int) -> str:
        """`  50/930`, always as wide."""
        return f"{step:>{len(str(self._total_steps))}}/{self._total_steps}"

    def left(self, step: int) -> str:
        """`0:12:34`; `?` before the first step is done."""
        if self._first is None or step <= self._first[0]:
            return "?"
        first_step, since = self._first
        return time_left(step - first_step, self._total_steps - step, time.monotonic() - since)


def time_left(done_steps: int, steps_to_go: int, seconds: float) -> str:
    """The time that `steps_to_go` take when `done_steps` took `seconds`, as hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds / done_steps * steps_to_go)))


def number(value: float) -> str:
    """A number for a person: integers as they are, floats with four decimals or, far from 1, in powers of ten."""
    if isinstance(value, int) or value == 0 or not math.isfinite(value):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if 0.01 <= abs(value) < 10_000:
        return f"{value:.4f}"
    return f"{value:.3e}"


def table(console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Prints results: with rules on a terminal, else as aligned text of any width, so that nothing is cut off.

    Floats are shown by `number`, None as nothing, anything else by `str`; columns of numbers are aligned right.
    """
    rows = [list(row) for row in rows]
    cells = [[_cell(value) for value in row] for row in rows]
    right = [all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(columns))]
    if console.is_terminal:
        drawn = Table(title=title, title_justify="left")
        for name, is_right in zip(columns, right, strict=True):
            drawn.add_column(name, justify="right" if is_right else "left", overflow="fold")
        for row in cells:
            drawn.add_row(*map(Text, row))
        console.print(drawn)
        return
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    console.out(title, highlight=False)
    for row in [list(columns), *cells]:
        padded = (
            f"{cell:>{width}}" if is_right else f"{cell:<{width}}"
            for cell, width, is_right in zip(row, widths, right, strict=True)
        )
        console.out("  " + "  ".join(padded).rstrip(), highlight=False)


def _fields(values: Mapping[str, Any]) -> list[str]:
    shown = {name: value for name, value in values.items() if value is not None and value is not False}
    return [_field(name, value) for name, value in shown.items() if not isinstance(value, Mapping)]


def _field(name: str, value: Any) -> str:
    if value is True:
        return name
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ", ".join(map(str, value))
    shown = f"{value:.0f}" if name in _RATES else number(value)
    return f"{_LABELS.get(name, name)} {shown:>9}"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return number(value)
    return "" if value is None else str(value)
